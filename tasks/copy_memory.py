"""copy-memory: ten symbols, T blank steps, then the ten symbols again, from memory.

Source: Hochreiter and Schmidhuber 1997; in the form of Arjovsky, Shah and Bengio, Unitary Evolution
Recurrent Neural Networks, ICML 2016, section 4.1, which Chang et al., Dilated Recurrent Neural
Networks, NIPS 2017, section 4.2, has too: eight symbols, T + 20 steps, all of which count.
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
    Figure("test_nats", "test, nats per step", "{:.5f}", True),
    Figure("test_recalled", "test, symbols recalled", "{:.3f}", False),
    Figure("nats", "validation, nats per step", "{:.5f}", True),
    Figure("recalled", "validation, symbols recalled", "{:.3f}", False),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "steps", "batches of sequences"
DATA: set[str] = set()  # options of it that `eval` takes
SYMBOLS, LENGTH = 8, 10  # to choose from, and in a sequence
BLANK, ASK = 8, 9  # what is read else: nothing, and the request to repeat them
TESTED = 256  # sequences that an evaluation runs


@dataclasses.dataclass(frozen=True, init=False)
class MemoryOptions(OptionGroup):
    """sequences"""

    blanks: int = option(
        100, "T: steps from the last symbol that is read to the first that is repeated", "STEPS", at_least=1
    )


@dataclasses.dataclass(frozen=True, init=False)
class CopyMemoryOptions(MemoryOptions, NetworkOptions, TaskOptions):
    evaluate_every: int = override(TaskOptions, "evaluate_every", default=1_000_000)
    log_every: int = override(TaskOptions, "log_every", default=100_000)


Options = CopyMemoryOptions


class CopyMemoryStream(DrawnStream):
    """Sequences of T + 20 steps: ten symbols, T - 1 blanks, a request, ten blanks.

    x: [T + 20, B, 10], one-hot. y: [T + 20, B], what to predict: T + 10 blanks, then the ten symbols.
    """

    def __init__(self, batch_size: int, blanks: int, seed: int):
        super().__init__(batch_size, seed)
        self.blanks = blanks

    def draw(self) -> Tensor:
        return torch.randint(SYMBOLS, (LENGTH, self.batch_size), generator=self.generator)

    def lay_out(self, drawn: Tensor) -> Batch:
        x = torch.full((self.blanks + 2 * LENGTH, self.batch_size), BLANK)
        y = x.clone()
        x[:LENGTH], y[-LENGTH:] = drawn, drawn
        x[-LENGTH - 1] = ASK
        return Batch(F.one_hot(x, ASK + 1).float(), y, None, True, True)


def fresh(options: CopyMemoryOptions, seed: int) -> list[Batch]:
    """Whole sequences that are none of training's, the same every time."""
    return [CopyMemoryStream(TESTED, options.blanks, seed).next(None)]


def make(options: CopyMemoryOptions) -> SequenceModel:
    return make_model(options, nn.Identity(), ASK + 1, SYMBOLS + 1, symbol_nats)


def sums(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {
        "nats": symbol_nats(outputs, batch.y).mean(0),
        "recalled": (outputs[-LENGTH:].argmax(-1) == batch.y[-LENGTH:]).double().mean(0),
    }


def build(options: CopyMemoryOptions) -> Task:
    """Everything that training needs, from the options."""
    torch.manual_seed(options.seed)
    stream = CopyMemoryStream(options.batch, options.blanks, options.seed)
    steps = options.blanks + 2 * LENGTH
    return make_task(
        "copy-memory", options, make(options), stream, lambda seed: fresh(options, seed), sums, "nats",
        steps, notice(options), steps,
    )  # fmt: skip


def baseline(blanks: int) -> float:
    """Nats a step of blanks, and then of any of the eight symbols, as likely each."""
    return LENGTH * math.log(SYMBOLS) / (blanks + 2 * LENGTH)


def notice(options: CopyMemoryOptions) -> str:
    return (
        f"copy-memory: {options.blanks} blank steps; without memory it is {baseline(options.blanks):.5f}"
        f" nats per step (10 log 8 / (T + 20)), and 0.125 recalled"
    )


def subject(options: CopyMemoryOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.blanks}"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(CopyMemoryOptions, config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that report the model's loss on fresh sequences, and how much it recalls."""
    options = from_config(CopyMemoryOptions, config)
    found = measure(model, fresh(options, TEST), sums)
    return [
        f"nats per step: {found['nats']:.5f}; symbols recalled: {found['recalled']:.3f}",
        notice(options),
    ]
