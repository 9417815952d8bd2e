"""char-lm: a language model that predicts each character of a text from those before it."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dnirnn.config.network import device_of, make_model, unroll
from dnirnn.config.options import (
    Checked,
    EstimatorOptions,
    NetworkOptions,
    RunOptions,
    TrainingOptions,
    changed,
    from_config,
    option,
    remembered,
)
from dnirnn.config.task import Figure, Task, steps_per_update
from dnirnn.data import Batch, TextStream, Vocabulary, taken
from dnirnn.data.corpus import (
    SPLITS,
    Corpus,
    builtin,
    cached,
    compact,
    load,
    penn_treebank,
    pieces,
    text_of,
)
from dnirnn.model import SequenceModel, symbol_nats

__all__ = ["CharLMOptions", "Evaluation", "build", "builtin", "penn_treebank", "restore", "sample"]

FIGURES = (
    Figure("test_bits", "test, bits per character", "{:.4f}", True),
    Figure("bits", "validation, bits per character", "{:.4f}", True),
)
DECAY = "cosine"  # of the learning rate over the budget
UNIT, EPOCHS = "characters", "epochs"
DATA = {"split", "corpus", "data_dir", "valid_file", "test_file", "text"}  # what `eval` may be told of it


@dataclasses.dataclass(frozen=True)
class TextOptions(Checked):
    """text"""

    corpus: str = option(
        "builtin",
        "ptb (Penn Treebank), builtin (Python's help topics, nothing to download) or the path of a"
        " UTF-8 text file, of which the last 5 % become test and the 5 % before validation",
        "CORPUS",
        place=True,
    )
    data_dir: str | None = option(
        None,
        "with ptb: the folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt",
        "FOLDER",
        shown="downloaded from the hub",
        place=True,
    )
    valid_file: str | None = option(
        None, "with a text file: validation from this file", "FILE", shown="a part of the text",
        place=True,
    )
    test_file: str | None = option(
        None, "with a text file: test from this file", "FILE", shown="a part of the text",
        place=True,
    )
    embedding: int = option(
        64, "size of the vector that stands for a character", "UNITS", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class CharLMOptions(TextOptions, NetworkOptions, TrainingOptions, RunOptions):
    lr: float = changed(TrainingOptions, "lr", 2e-3)
    # On Penn Treebank's validation 1e-5 did best of 1e-4, 1e-5 and 1e-6, and there a linear
    # predictor better than one with a hidden layer: results/README.md.
    estimator_hidden: tuple = changed(
        EstimatorOptions, "estimator_hidden", ("linear",), shown="linear"
    )
    estimator_lr: float = changed(TrainingOptions, "estimator_lr", 1e-5)


Options = CharLMOptions


class Evaluation:
    """Bits per character of a text, every symbol predicted exactly once, the first from a newline.

    For speed the text is read in parallel rows. Each but the first is warmed up on the characters
    before it, which are not scored, so that the figure is that of one pass through the text, but
    for what the state remembers from farther back.

    symbols: LongTensor [n], or of smaller ints; n at least 1.
    first_input: the symbol that stands before the text.
    rows: at most so many, fewer for a short text: a row is at least four times its warm-up.
    warm_up: characters before a row.
    unknown: the symbol that stands for characters that the training text has not. They are read
        like all others, and scored apart.
    """

    def __init__(
        self,
        symbols: Tensor,
        first_input: int,
        rows: int = 64,
        warm_up: int = 256,
        unknown: int | None = None,
    ):
        self.symbols, self.first_input, self.unknown = symbols, first_input, unknown
        rows = max(1, min(rows, len(symbols) // (4 * warm_up)))
        self.length = -(-len(symbols) // rows)
        self.start, self.warm_up = torch.arange(rows) * self.length, warm_up

    def window(self, start: int, end: int, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """(x, y, whether y counts) of the steps from start to end, all [T, rows]."""
        step = torch.arange(start - 1, end, device=self.start.device)
        place = self.start[rows] + step[:, None]
        found = taken(self.symbols, place.clamp(0, len(self.symbols) - 1))
        found = torch.where(place < 0, self.first_input, found)
        return found[:-1], found[1:], place[1:] < len(self.symbols)

    def __call__(self, model: SequenceModel, steps: int = 128) -> dict[str, float]:
        """{"bits": mean bits per character}. ``steps`` a call change the speed, not the result.

        With an unknown symbol "bits" is the mean over all others, and "unknown", "unknown_bits" are
        how many are unknown and the mean bits of those (0 of none).
        """
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                nats, unknown_nats, unknown = self.nats(model, steps)
        finally:
            model.train(training)
        bits = nats / max(1, len(self.symbols) - unknown) / math.log(2)
        if self.unknown is None:
            return {"bits": bits}
        apart = unknown_nats / max(1, unknown) / math.log(2)
        return {"bits": bits, "unknown": unknown, "unknown_bits": apart}

    def nats(self, model: SequenceModel, steps: int) -> tuple[float, float, int]:
        """(nats of what is known, nats of what is unknown, how many are unknown)."""
        place = device_of(model)
        self.symbols, self.start = self.symbols.to(place), self.start.to(place)
        state = model.initial_state(len(self.start))
        if len(self.start) > 1:
            warm = state[1:]
            for start in range(-self.warm_up, 0, steps):
                x = self.window(start, min(start + steps, 0), slice(1, None))[0]
                _, warm = unroll(model, x, warm, self.start[1:] + start)
            state = torch.cat([state[:1], warm])
        nats, unknown_nats, unknown = 0.0, 0.0, 0
        for start in range(0, self.length, steps):
            x, y, counts = self.window(start, min(start + steps, self.length))
            logits, state = unroll(model, x, state, self.start + start)
            losses = model.loss(logits, y)
            if self.unknown is not None:
                apart = counts & (y == self.unknown)
                unknown_nats += float(losses[apart].sum(dtype=torch.float64))
                unknown += int(apart.sum())
                counts = counts & ~apart
            nats += float(losses[counts].sum(dtype=torch.float64))
        return nats, unknown_nats, unknown


def make(options: CharLMOptions, vocabulary: Vocabulary) -> SequenceModel:
    encoder = nn.Embedding(len(vocabulary), options.embedding)
    return make_model(options, encoder, options.embedding, len(vocabulary), symbol_nats)


def build(options: CharLMOptions) -> Task:
    """Everything that training needs, from the options.

    Raises ValueError or OSError, naming the option, for a text that does not fit.
    """
    steps = steps_per_update(options)
    corpus = load_corpus(options)
    vocabulary = vocabulary_of(corpus)
    fingerprint = corpus.fingerprint()
    if corpus.is_large():
        symbols = cached(corpus, vocabulary, fingerprint, options.quiet)
    else:
        symbols = encode(corpus, vocabulary)
    count, needed = len(symbols["train"]), options.batch * (steps or options.truncation)
    if count < needed:
        raise ValueError(
            f"corpus {corpus.name} has {count:,} training symbols; {options.batch} sequences of"
            f" {needed // options.batch} steps need {needed:,} (lower --batch or --truncation)"
        )
    newline = int(vocabulary.encode("\n"))
    torch.manual_seed(options.seed)
    model = make(options, vocabulary)
    test = Evaluation(symbols["test"], newline, unknown=vocabulary.unknown)
    config = {
        "task": "char-lm",
        **remembered(resolve(options)),
        "vocabulary": vocabulary.to_json(),
        "corpus_sha256": fingerprint,
    }
    notice = corpus.describe()
    if vocabulary.unknown is not None:
        notice += "; characters that are not in the training text are one unknown symbol, scored apart"
    return Task(
        model,
        TextStream(symbols["train"], options.batch, newline),
        Evaluation(symbols["valid"], newline, unknown=vocabulary.unknown),
        lambda model: {f"test_{name}": value for name, value in test(model).items()},
        count if steps is None else options.batch * steps,
        config,
        notice,
        lambda steps: stretch(symbols["valid"], newline, steps),
    )


def vocabulary_of(corpus: Corpus) -> Vocabulary:
    """The training text's characters, and a symbol for unknown ones where other splits have some."""
    known = Vocabulary.of(pieces(corpus.splits["train"]))
    others = (piece for split in SPLITS[1:] for piece in pieces(corpus.splits[split]))
    unknown = any(not set(piece) <= set(known.characters) for piece in others)
    return Vocabulary(known.characters, unknown)


def stretch(symbols: Tensor, first_input: int, steps: int, rows: int = 16) -> Batch:
    """The first steps of a text in parallel rows; of fewer rows where the text is short."""
    rows = max(1, min(rows, len(symbols) // steps))
    return TextStream(symbols, rows, first_input).next(steps)


def load_corpus(options: CharLMOptions) -> Corpus:
    return load(options.corpus, options.data_dir, options.valid_file, options.test_file)


def encode(corpus: Corpus, vocabulary: Vocabulary) -> dict[str, Tensor]:
    symbols = {}
    for split in SPLITS:
        try:
            symbols[split] = compact(corpus.splits[split], vocabulary)
        except ValueError as error:
            raise ValueError(f"corpus {corpus.name}, {split} split: {error}") from None
    return symbols


def resolve(options: CharLMOptions) -> CharLMOptions:
    """The same options with absolute paths, so that a run can be found again from elsewhere."""
    paths = {
        name: str(Path(value).resolve())
        for name in ("data_dir", "valid_file", "test_file")
        if (value := getattr(options, name)) is not None
    }
    if options.corpus not in ("ptb", "builtin"):
        paths["corpus"] = str(Path(options.corpus).resolve())
    return dataclasses.replace(options, **paths)


def subject(options: CharLMOptions) -> str:
    """What a run folder's name says of the task."""
    return Path(options.corpus).stem


def restore(config: dict) -> tuple[SequenceModel, Vocabulary]:
    """The model, with fresh weights, and the vocabulary of a run's configuration."""
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    return make(from_config(CharLMOptions, config), vocabulary), vocabulary


def evaluate(config: dict, model: SequenceModel, split: str) -> list[str]:
    """Lines that say the bits per character of a split, and of what text.

    config: a run's, and "text", if another file is to be evaluated, whole, in place of a split.

    Raises ValueError where the corpus is not the one that the run was trained on.
    """
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    if "text" in config:
        return evaluate_text(model, vocabulary, config["text"])
    corpus = load_corpus(from_config(CharLMOptions, config))
    if corpus.fingerprint() != config["corpus_sha256"]:
        raise ValueError(
            f"corpus {corpus.name} is not the text that the run was trained on (--text evaluates"
            " another one)"
        )
    symbols = compact(corpus.splits[split], vocabulary)
    lines = figures_of(model, vocabulary, symbols, split)
    return [*lines, f"{corpus.name}, {split}: {len(symbols):,} symbols ({corpus.convention})"]


def evaluate_text(model: SequenceModel, vocabulary: Vocabulary, path: str) -> list[str]:
    """Lines that say the bits per character of a file; what the run has no symbol for is left out."""
    text, parts, left_out = text_of(path, "--text"), [], 0
    for piece in pieces(text):
        symbols, unknown = vocabulary.find(piece)
        if vocabulary.unknown is None:
            left_out += int(unknown.sum())
            symbols = symbols[~unknown]
        else:
            symbols[unknown] = vocabulary.unknown
        parts.append(symbols.astype(vocabulary.dtype))
    symbols = torch.from_numpy(np.concatenate(parts))
    name = Path(path).name
    if not len(symbols):
        raise ValueError(f"--text: {path} has no character that the run's text has")
    lines = figures_of(model, vocabulary, symbols, name)
    lines.append(f"{name}: {len(symbols):,} symbols (every character of the file)")
    if left_out:
        lines.append(
            f"{left_out:,} characters of {len(text):,} are left out and not scored: the run's text"
            " has none like them, and the run no symbol for the unknown"
        )
    return lines


def figures_of(
    model: SequenceModel, vocabulary: Vocabulary, symbols: Tensor, name: str
) -> list[str]:
    newline = int(vocabulary.encode("\n"))
    found = Evaluation(symbols, newline, unknown=vocabulary.unknown)(model)
    lines = [f"{name}, bits per character: {found['bits']:.4f}"]
    if found.get("unknown"):
        lines.append(
            f"and {found['unknown']:,} characters unknown to the training text, at"
            f" {found['unknown_bits']:.4f} bits each, not counted in that"
        )
    return lines


def sample(
    model: SequenceModel,
    vocabulary: Vocabulary,
    length: int,
    temperature: float = 1.0,
    prime: str = "",
    seed: int = 0,
) -> str:
    """A text of ``length`` characters that the model writes after a newline and ``prime``.

    temperature: divides the logits; 0 takes the likeliest character each time, higher values vary
        more.

    Raises ValueError for a negative or infinite temperature, a length below 1, or a prime with a
    character that the model does not know.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0; got {temperature}")
    if length < 1:
        raise ValueError(f"length must be at least 1 character; got {length}")
    try:
        symbols = vocabulary.encode("\n" + prime)
    except ValueError as error:
        raise ValueError(f"prime: {error}") from None
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    device = device_of(model)
    with torch.inference_mode():
        logits, state = unroll(model, symbols[:, None].to(device), model.initial_state(1), 0)
        logits, written, t = logits[-1], [], len(symbols)
        while True:
            written.append(choose(logits, temperature, generator))
            if len(written) == length:
                return vocabulary.decode(torch.cat(written))
            logits, state = model.step(written[-1].to(device), state, t)
            t += 1


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    logits = logits.cpu()  # where the generator is
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double()
    # From the largest down, so that the smallest temperature divides no number to infinity.
    probabilities = torch.softmax((logits - logits.max(-1, keepdim=True)[0]) / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
