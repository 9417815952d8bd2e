"""char-lm: a language model that predicts each character of a text from those before it."""

import dataclasses
import math
from pathlib import Path

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
from dnirnn.data import Batch, TextStream, Vocabulary
from dnirnn.data.corpus import SPLITS, Corpus, builtin, load, penn_treebank
from dnirnn.model import SequenceModel, symbol_nats

__all__ = ["CharLMOptions", "Evaluation", "build", "builtin", "penn_treebank", "restore", "sample"]

FIGURES = (
    Figure("test_bits", "test, bits per character", "{:.4f}", True),
    Figure("bits", "validation, bits per character", "{:.4f}", True),
)
DECAY = "cosine"  # of the learning rate over the budget
UNIT, EPOCHS = "characters", "epochs"
DATA = {"split", "corpus", "data_dir", "valid_file", "test_file"}  # what `eval` may be told of it


@dataclasses.dataclass(frozen=True)
class TextOptions(Checked):
    """text"""

    corpus: str = option(
        "builtin",
        "ptb (Penn Treebank), builtin (Python's help topics, nothing to download) or the path of a"
        " UTF-8 text file, of which the last 5 % become test and the 5 % before validation",
        "CORPUS",
    )
    data_dir: str | None = option(
        None,
        "with ptb: the folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt",
        "FOLDER",
        shown="downloaded from the hub",
    )
    valid_file: str | None = option(
        None, "with a text file: validation from this file", "FILE", shown="a part of the text"
    )
    test_file: str | None = option(
        None, "with a text file: test from this file", "FILE", shown="a part of the text"
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

    symbols: LongTensor [n], n at least 1.
    first_input: the symbol that stands before the text.
    rows: at most so many, fewer for a short text: a row is at least four times its warm-up.
    warm_up: characters before a row.
    """

    def __init__(self, symbols: Tensor, first_input: int, rows: int = 64, warm_up: int = 256):
        count = len(symbols)
        rows = max(1, min(rows, count // (4 * warm_up)))
        length = -(-count // rows)
        text = torch.full((rows * length + 1,), first_input)
        text[1 : count + 1] = symbols
        self.count = count
        self.start = torch.arange(rows) * length
        self.before = text[self.start[1:] - warm_up + torch.arange(warm_up)[:, None]]
        self.x = text[:-1].view(rows, length).t().contiguous()
        self.y = text[1:].view(rows, length).t().contiguous()
        self.weight = (torch.arange(rows * length) < count).view(rows, length).t().contiguous()

    def __call__(self, model: SequenceModel, steps: int = 128) -> dict[str, float]:
        """{"bits": mean bits per character}. ``steps`` a call change the speed, not the result."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return {"bits": self.nats(model, steps) / self.count / math.log(2)}
        finally:
            model.train(training)

    def nats(self, model: SequenceModel, steps: int) -> float:
        for name in ("start", "before", "x", "y", "weight"):
            setattr(self, name, getattr(self, name).to(device_of(model)))
        state = model.initial_state(len(self.start))
        if len(self.start) > 1:
            warm, t = state[1:], self.start[1:] - len(self.before)
            for x in self.before.split(steps):
                _, warm = unroll(model, x, warm, t)
                t = t + len(x)
            state = torch.cat([state[:1], warm])
        nats, t = 0.0, self.start
        for x, y, weight in zip(*(part.split(steps) for part in (self.x, self.y, self.weight))):
            logits, state = unroll(model, x, state, t)
            nats += float(model.loss(logits, y)[weight].sum(dtype=torch.float64))
            t = t + len(x)
        return nats


def make(options: CharLMOptions, vocabulary: Vocabulary) -> SequenceModel:
    encoder = nn.Embedding(len(vocabulary), options.embedding)
    return make_model(options, encoder, options.embedding, len(vocabulary), symbol_nats)


def build(options: CharLMOptions) -> Task:
    """Everything that training needs, from the options.

    Raises ValueError or OSError, naming the option, for a text that does not fit.
    """
    steps = steps_per_update(options)
    corpus = load_corpus(options)
    vocabulary = Vocabulary.of(corpus.splits["train"])
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
    test = Evaluation(symbols["test"], newline)
    config = {
        "task": "char-lm",
        **remembered(resolve(options)),
        "vocabulary": vocabulary.to_json(),
        "corpus_sha256": corpus.fingerprint(),
    }
    return Task(
        model,
        TextStream(symbols["train"], options.batch, newline),
        Evaluation(symbols["valid"], newline),
        lambda model: {"test_bits": test(model)["bits"]},
        count if steps is None else options.batch * steps,
        config,
        corpus.describe(),
        lambda steps: stretch(symbols["valid"], newline, steps),
    )


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
            symbols[split] = vocabulary.encode(corpus.splits[split])
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

    Raises ValueError where the text is not the one that the run was trained on.
    """
    corpus = load_corpus(from_config(CharLMOptions, config))
    if corpus.fingerprint() != config["corpus_sha256"]:
        raise ValueError(f"corpus {corpus.name} is not the text that the run was trained on")
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    symbols = vocabulary.encode(corpus.splits[split])
    bits = Evaluation(symbols, int(vocabulary.encode("\n")))(model)["bits"]
    return [
        f"{split}, bits per character: {bits:.4f}",
        f"{corpus.name}, {split}: {len(symbols):,} symbols ({corpus.convention})",
    ]


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
    probabilities = torch.softmax(logits.double() / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
