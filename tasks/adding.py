"""adding: the sum of the two numbers of a sequence that were marked, asked at its end.

Source: Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 1997, section 5.4; in
the form that is now usual: all sequences of one length, numbers from 0 to 1, one of them marked in
each half, the sum as it is. Always saying 1 costs a mean squared error of 1/6.
"""

import dataclasses

import torch
from torch import Tensor, nn

from dnirnn.config.network import NetworkOptions, make_model
from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, Task, TaskOptions
from dnirnn.data import Batch
from dnirnn.data.drawn import DrawnStream
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel, squared_error
from dnirnn.options import option, override
from dnirnn.tasks.measured import TEST, make_task, measure

FIGURES = (
    Figure("test_error", "test, mean squared error", "{:.5f}", True),
    Figure("test_within", "test, within 0.04", "{:.3f}", False),
    Figure("error", "validation, mean squared error", "{:.5f}", True),
    Figure("within", "validation, within 0.04", "{:.3f}", False),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "sequences", "batches of sequences"
DATA: set[str] = set()  # options of it that `eval` takes
NEAR = 0.04  # an error that counts as right
TESTED = 1024  # sequences that an evaluation runs


@dataclasses.dataclass(frozen=True, init=False)
class AddingSequences(OptionGroup):
    """sequences"""

    length: int = option(100, "length of a sequence", "STEPS", at_least=2)


@dataclasses.dataclass(frozen=True, init=False)
class AddingOptions(AddingSequences, NetworkOptions, TaskOptions):
    # A sequence is one symbol.
    evaluate_every: int = override(TaskOptions, "evaluate_every", default=10_000)
    log_every: int = override(TaskOptions, "log_every", default=500)


Options = AddingOptions


class AddingStream(DrawnStream):
    """Sequences of T numbers, two of them marked, and their sum.

    x: [T, B, 2]; a number from 0 to 1, and 1 where it is marked: once in the first T // 2 steps,
    once in the others. y: [T, B, 1], the sum. Only the last step counts. label: the sum, [B, 1].
    """

    def __init__(self, batch_size: int, length: int, seed: int):
        super().__init__(batch_size, seed)
        self.length = length

    def draw(self) -> Tensor:
        half, rows = self.length // 2, (1, self.batch_size)
        numbers = torch.rand(self.length, self.batch_size, generator=self.generator)
        first = torch.randint(half, rows, generator=self.generator)
        second = torch.randint(half, self.length, rows, generator=self.generator)
        marks = torch.zeros_like(numbers).scatter_(0, torch.cat([first, second]), 1)
        return torch.stack([numbers, marks], -1)

    def lay_out(self, drawn: Tensor) -> Batch:
        total = drawn.prod(-1).sum(0)[:, None]
        weight = torch.zeros(drawn.shape[:2])
        weight[-1] = 1
        return Batch(drawn, total.expand(len(drawn), -1, -1), weight, True, True, None, total)


def fresh(options: AddingOptions, seed: int) -> list[Batch]:
    """Whole sequences that are none of training's, the same every time."""
    return [AddingStream(TESTED, options.length, seed).next(None)]


def make(options: AddingOptions) -> SequenceModel:
    return make_model(options, nn.Identity(), 2, 1, squared_error, label_size=1)


def sums(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    """"error", squared, and "within", 1 where it is below 0.04."""
    missed = (outputs[-1] - batch.y[-1])[:, 0].double()
    return {"error": missed.square(), "within": (missed.abs() < NEAR).double()}


def build(options: AddingOptions) -> Task:
    """Everything that training needs, from the options."""
    torch.manual_seed(options.seed)
    return make_task(
        "adding",
        options,
        make(options),
        AddingStream(options.batch, options.length, options.seed),
        lambda seed: fresh(options, seed),
        sums,
        "error",
        1,
        notice(options),
        options.length,
    )


def notice(options: AddingOptions) -> str:
    return (
        f"adding: sequences of {options.length} steps; always saying 1 has a mean squared error of"
        f" 0.1667, and is within {NEAR} for 0.078 of them"
    )


def subject(options: AddingOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.length}"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(AddingOptions, config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that report the model's error on fresh sequences."""
    options = from_config(AddingOptions, config)
    found = measure(model, fresh(options, TEST), sums)
    return [
        f"mean squared error: {found['error']:.5f}; within {NEAR}: {found['within']:.3f}",
        notice(options),
    ]
