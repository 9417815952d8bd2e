"""Bits per character: of a split, of a text, every symbol counted once."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnirnn.config.network import device_of
from dnirnn.data import Vocabulary, Words, taken
from dnirnn.data.corpus import SPLITS, Corpus, compact, load, pieces, text_of
from dnirnn.distillation import Ensemble
from dnirnn.model import SequenceModel
from dnirnn.tasks.char_lm.dynamic import dynamic_lines
from dnirnn.tasks.char_lm.network import figure_of, vocabulary_of
from dnirnn.tasks.char_lm.options import CharLMOptions, WordLMOptions, options_of
from dnirnn.tasks.char_lm.teachers import load_peer

LOGITS = 2**24  # that are held at once


class Evaluation:
    """Bits per symbol of a text, every symbol predicted exactly once, the first from a newline.

    For speed the text is read in parallel rows. Each but the first is warmed up on the characters
    before it, which are not scored, so that the figure is that of one pass through the text, but
    for what the state remembers from farther back.

    symbols: LongTensor [n], or of smaller ints; n at least 1.
    first_input: the symbol that stands before the text.
    rows: at most so many, fewer for a short text: a row is at least four times its warm-up.
    warm_up: characters before a row.
    unknown: the symbol that stands for what the training text has not. It is read like all others,
        and scored separately.
    vocabulary: how many symbols there are; of many, fewer steps are read at once.
    perplexity: also give 2 to the power of the bits, as is the custom of words.
    """

    def __init__(
        self,
        symbols: Tensor,
        first_input: int,
        rows: int = 64,
        warm_up: int = 256,
        unknown: int | None = None,
        vocabulary: int = 1,
        perplexity: bool = False,
    ):
        self.perplexity = perplexity
        self.symbols, self.first_input, self.unknown = symbols, first_input, unknown
        rows = max(1, min(rows, len(symbols) // (4 * warm_up)))
        self.length = -(-len(symbols) // rows)
        self.start, self.warm_up = torch.arange(rows) * self.length, warm_up
        self.most_steps = max(1, LOGITS // (rows * vocabulary))

    @classmethod
    def by(cls, vocabulary: Vocabulary | Words, symbols: Tensor) -> "Evaluation":
        """That of a text in these symbols."""
        newline, unknown = int(vocabulary.encode("\n")), vocabulary.unknown
        words = isinstance(vocabulary, Words)
        return cls(symbols, newline, unknown=unknown, vocabulary=len(vocabulary), perplexity=words)

    def window(self, start: int, end: int, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """(x, y, whether y counts) of the steps from start to end, all [T, rows]."""
        step = torch.arange(start - 1, end, device=self.start.device)
        place = self.start[rows] + step[:, None]
        found = taken(self.symbols, place.clamp(0, len(self.symbols) - 1))
        found = torch.where(place < 0, self.first_input, found)
        return found[:-1], found[1:], place[1:] < len(self.symbols)

    def __call__(self, model: SequenceModel | Ensemble, steps: int = 128) -> dict[str, float]:
        """{"bits": mean bits per symbol}. ``steps`` a call change the speed, not the result.

        With an unknown symbol "bits" is the mean over all others, and "unknown", "unknown_bits" are
        how many are unknown and the mean bits of those (0 of none).
        """
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                nats, unknown_nats, unknown = self.nats(model, min(steps, self.most_steps))
        finally:
            model.train(training)
        bits = nats / max(1, len(self.symbols) - unknown) / math.log(2)
        found = {"bits": bits}
        if self.perplexity:
            found["perplexity"] = 2 ** min(bits, 1000.0)
        if self.unknown is not None:
            apart = unknown_nats / max(1, unknown) / math.log(2)
            found |= {"unknown": unknown, "unknown_bits": apart}
        return found

    def nats(self, model: SequenceModel | Ensemble, steps: int) -> tuple[float, float, int]:
        """(nats of what is known, nats of what is unknown, how many are unknown)."""
        place = device_of(model)
        self.symbols, self.start = self.symbols.to(place), self.start.to(place)
        state = model.initial_state(len(self.start))
        if len(self.start) > 1:
            warm = state[1:]
            for start in range(-self.warm_up, 0, steps):
                x = self.window(start, min(start + steps, 0), slice(1, None))[0]
                _, warm = model.unroll(x, warm, self.start[1:] + start)
            state = torch.cat([state[:1], warm])
        nats, unknown_nats, unknown = 0.0, 0.0, 0
        for start in range(0, self.length, steps):
            x, y, counts = self.window(start, min(start + steps, self.length))
            logits, state = model.unroll(x, state, self.start + start)
            losses = model.loss(logits, y)
            if self.unknown is not None:
                apart = counts & (y == self.unknown)
                unknown_nats += float(losses[apart].sum(dtype=torch.float64))
                unknown += int(apart.sum())
                counts = counts & ~apart
            nats += float(losses[counts].sum(dtype=torch.float64))
        return nats, unknown_nats, unknown


def load_corpus(options: CharLMOptions) -> Corpus:
    words = isinstance(options, WordLMOptions)
    return load(options.corpus, options.data_dir, options.valid_file, options.test_file, words)


def evaluate(config: dict, model: SequenceModel, split: str) -> list[str]:
    """Lines that report the bits per character of a split, and of what text.

    config: a run's, and "text", if another file is to be evaluated, whole, in place of a split;
        "dynamic", and what goes with it, for a dynamic evaluation beside the plain one; "others", run
        folders whose models predict together with this one.

    Raises ValueError where the corpus is not the one that the run was trained on.
    """
    vocabulary, splits = vocabulary_of(config), None
    if "text" not in config or config.get("dynamic"):
        corpus = load_corpus(options_of(config))
        if corpus.fingerprint() != config["corpus_sha256"]:
            raise ValueError(
                f"corpus {corpus.name} is not the text that the run was trained on (--text evaluates"
                " another one)"
            )
        wanted = SPLITS if config.get("dynamic") else (split,)
        splits = {name: compact(corpus.splits[name], vocabulary) for name in wanted}
        if "train" in splits:
            splits["train"] = learned_from(splits["train"], options_of(config).train_share)
    if "text" in config:
        name = Path(config["text"]).name
        symbols, notes = read_text(vocabulary, config["text"])
    else:
        name, symbols = split, splits[split]
        notes = [f"{corpus.name}, {split}: {len(symbols):,} symbols ({corpus.convention})"]
    measured = model
    if "others" in config:
        options, place = options_of(config), device_of(model)
        others = [load_peer(Path(run), options, vocabulary, "--others") for run in config["others"]]
        measured = Ensemble([model, *(other.to(place) for other in others)])
        notes = [f"the mean prediction of {len(others) + 1} models", *notes]
    lines = figures_of(measured, vocabulary, symbols, name)
    if config.get("dynamic"):
        lines += dynamic_lines(config, model, vocabulary, splits, symbols, name)
    return [*lines, *notes]


def learned_from(symbols: Tensor, share: float) -> Tensor:
    """The part of a training text that a run learns from (--train-share)."""
    return symbols[: round(share * len(symbols))]


def read_text(vocabulary: Vocabulary | Words, path: str) -> tuple[Tensor, list[str]]:
    """The symbols of a file, without what the run has no symbol for, and lines that say so."""
    text, parts, left_out = text_of(path, "--text"), [], 0
    for piece in vocabulary.parts(pieces(text)):
        symbols, unknown = vocabulary.find(piece)
        if vocabulary.unknown is None:
            left_out += int(unknown.sum())
            symbols = symbols[~unknown]
        else:
            symbols[unknown] = vocabulary.unknown
        parts.append(symbols.astype(vocabulary.dtype))
    symbols = torch.from_numpy(np.concatenate(parts))
    if not len(symbols):
        raise ValueError(f"--text: {path} has no {vocabulary.unit} that the run's text has")
    convention = f"every {vocabulary.unit} of the file"
    if isinstance(vocabulary, Words):
        convention = vocabulary.convention
    lines = [f"{Path(path).name}: {len(symbols):,} symbols ({convention})"]
    if left_out:
        lines.append(
            f"{left_out:,} {vocabulary.units} of {left_out + len(symbols):,} are left out and not scored: the run's text"
            " has none like them, and the run no symbol for the unknown"
        )
    return symbols, lines


def figures_of(
    model: SequenceModel | Ensemble, vocabulary: Vocabulary | Words, symbols: Tensor, name: str
) -> list[str]:
    found, unit = Evaluation.by(vocabulary, symbols)(model), vocabulary.unit
    lines = [f"{name}, {figure_of(vocabulary, found['bits'])}"]
    if found.get("unknown"):
        lines.append(
            f"and {found['unknown']:,} {unit}s unknown to the training text, at"
            f" {found['unknown_bits']:.4f} bits each, not counted in that"
        )
    return lines
