"""dyck: which bracket closes next, in well-nested strings of brackets of several kinds.

A string of the language Dyck-k is read; wherever a bracket closes, its kind is to be predicted one
step before from the innermost bracket that is still open, however far back that was.

Source: as a test of recurrent networks, Suzgun et al., LSTM Networks Can Perform Dynamic Counting,
2019; with a bounded depth, Hewitt et al., RNNs Can Generate Bounded Hierarchical Languages with
Optimal Memory, EMNLP 2020, Dyck-(k, m).
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.config.network import NetworkOptions, make_model
from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, Task, TaskOptions
from dnirnn.data import Batch
from dnirnn.data.drawn import DrawnStream
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.options import option, override
from dnirnn.tasks.measured import TEST, make_task, measure

FIGURES = (
    Figure("test_nats", "test, nats per closing bracket", "{:.5f}", True),
    Figure("test_right", "test, share predicted right", "{:.4f}", False),
    Figure("nats", "validation, nats per closing bracket", "{:.5f}", True),
    Figure("right", "validation, share predicted right", "{:.4f}", False),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "closing brackets", "batches of strings"
DATA: set[str] = set()  # options of it that `eval` takes
TESTED = 512  # strings that an evaluation runs


@dataclasses.dataclass(frozen=True, init=False)
class DyckStrings(OptionGroup):
    """strings"""

    length: int = option(100, "length of a string, even", "STEPS", at_least=2)
    kinds: int = option(2, "kinds of brackets", "KINDS", at_least=2)
    depth: int = option(8, "most brackets that are open at once", "BRACKETS", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % 2:
            raise ValueError(f"--length must be even, half of it closing brackets; got {self.length}")


@dataclasses.dataclass(frozen=True, init=False)
class DyckOptions(DyckStrings, NetworkOptions, TaskOptions):
    evaluate_every: int = override(TaskOptions, "evaluate_every", default=200_000)
    log_every: int = override(TaskOptions, "log_every", default=20_000)


Options = DyckOptions


class DyckStream(DrawnStream):
    """Well-nested strings of T brackets of k kinds, at most ``depth`` of them open at once.

    At every step a bracket opens or closes with equal chance where both are possible; an opening
    one is of any kind. x: [T, B, 2 k], one-hot: k opening, then k closing brackets. y: [T, B], the
    kind of the closing bracket that comes next, at the steps right before one, which alone count:
    T / 2 of them a string.
    """

    def __init__(self, batch_size: int, length: int, kinds: int, depth: int, seed: int):
        super().__init__(batch_size, seed)
        self.length, self.kinds, self.depth = length, kinds, depth

    def draw(self) -> Tensor:
        shape = self.length, self.batch_size
        flips = torch.randint(2, shape, generator=self.generator)
        return torch.stack([flips, torch.randint(self.kinds, shape, generator=self.generator)])

    def lay_out(self, drawn: Tensor) -> Batch:
        flips, kinds = drawn
        rows = torch.arange(flips.shape[1])
        stack = torch.zeros(self.depth, len(rows), dtype=torch.int64)
        open_, symbols = torch.zeros_like(rows), torch.empty_like(flips)
        for t in range(self.length):
            opens = (open_ < self.depth) & (open_ < self.length - t) & ((flips[t] > 0) | (open_ == 0))
            top = stack[(open_ - 1).clamp_min(0), rows]
            symbols[t] = torch.where(opens, kinds[t], self.kinds + top)
            stack[open_[opens], rows[opens]] = kinds[t][opens]
            open_ = open_ + torch.where(opens, 1, -1)
        y, weight = torch.zeros_like(symbols), torch.zeros(symbols.shape)
        closes = symbols[1:] >= self.kinds
        y[:-1] = torch.where(closes, symbols[1:] - self.kinds, 0)
        weight[:-1] = closes.float()
        return Batch(F.one_hot(symbols, 2 * self.kinds).float(), y, weight, True, True)


def stream_of(options: DyckOptions, batch: int, seed: int) -> DyckStream:
    return DyckStream(batch, options.length, options.kinds, options.depth, seed)


def fresh(options: DyckOptions, seed: int) -> list[Batch]:
    """Whole strings that are none of training's, the same every time."""
    return [stream_of(options, TESTED, seed).next(None)]


def make(options: DyckOptions) -> SequenceModel:
    return make_model(options, nn.Identity(), 2 * options.kinds, options.kinds, symbol_nats)


def sums(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Means over a string's closing brackets, of which all strings have equally many."""
    count = len(batch.y) // 2
    right = (outputs.argmax(-1) == batch.y).double() * batch.weight
    nats = symbol_nats(outputs, batch.y).double() * batch.weight
    return {"nats": nats.sum(0) / count, "right": right.sum(0) / count}


def build(options: DyckOptions) -> Task:
    """Everything that training needs, from the options."""
    torch.manual_seed(options.seed)
    stream = stream_of(options, options.batch, options.seed)
    return make_task(
        "dyck", options, make(options), stream, lambda seed: fresh(options, seed), sums, "nats",
        options.length // 2, notice(options), options.length,
    )  # fmt: skip


def notice(options: DyckOptions) -> str:
    return (
        f"dyck: strings of {options.length} brackets of {options.kinds} kinds, at most {options.depth}"
        f" open; a guess costs {math.log(options.kinds):.4f} nats, and is right for"
        f" {1 / options.kinds:.3f} of them"
    )


def subject(options: DyckOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.length}-{options.kinds}kinds"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(DyckOptions, config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that report the model's loss on fresh strings, and how often it is right."""
    options = from_config(DyckOptions, config)
    found = measure(model, fresh(options, TEST), sums)
    return [
        f"nats per closing bracket: {found['nats']:.5f}; predicted right: {found['right']:.4f}",
        notice(options),
    ]
