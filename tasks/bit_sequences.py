"""What copy and repeat-copy share: random bits to be reproduced, more of them as they are solved."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnirnn.config.network import NetworkOptions, device_of, make_model
from dnirnn.config.saved import identity
from dnirnn.config.task import Task, TaskOptions, chunk_steps
from dnirnn.data import Batch
from dnirnn.data.drawn import DrawnStream
from dnirnn.estimators.base import EstimatorConfig
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel, bit_nats
from dnirnn.options import option, override

DECAY = "cosine"  # of the learning rate over the budget
TESTED = 256  # sequences of a size that an evaluation runs
RECENT = 10  # sequences whose mean error decides whether they grow


@dataclasses.dataclass(frozen=True, init=False)
class SequenceOptions(OptionGroup):
    """sequences"""

    bits: int = option(8, "size of the vectors to copy", "BITS", at_least=1)
    start_length: int = option(1, "length of the first sequences", "VECTORS", at_least=1)
    max_length: int = option(
        32, "length at which the curriculum stops growing, and up to which is tested", "VECTORS",
        at_least=1,
    )
    solved_below: float = option(
        0.15,
        "error, in bits per predicted bit (a guess costs 1), under which sequences count as solved and"
        " the curriculum goes on to longer ones",
        "BITS",
        above=0,
    )


@dataclasses.dataclass(frozen=True, init=False)
class CurriculumOptions(SequenceOptions, NetworkOptions, TaskOptions):
    """All options; the defaults are those that the ablation in results/README.md came from."""

    # A chunk an update changes the parameters while a sequence is half read.
    update_steps: int | str = override(NetworkOptions, "update_steps", default="sequence")
    lr: float = override(TaskOptions, "lr", default=3e-3)
    estimator: EstimatorConfig = override(
        NetworkOptions, "estimator", defaults={"estimator_hidden": ("linear",)}
    )
    estimator_lr: float = override(TaskOptions, "estimator_lr", default=1e-3)


class BitStream(DrawnStream):
    """Sequences of N vectors of random bits, and what a task asks about them.

    They grow by a stage where the mean error of the last ones of this size falls under
    ``solved_below``, in bits per predicted bit.

    length: N of the next sequences, grown so far.
    figures: what :meth:`score` finds for the largest size whose error fell under ``solved_below``; 0
        before there is one.
    """

    SIZE: tuple[str, ...] = ("length",)  # the attributes that grow
    FIGURES: tuple[str, ...] = ("solved",)

    def __init__(self, options: SequenceOptions):
        check_start("length", options.start_length, options.max_length)
        super().__init__(options.batch, options.seed)
        self.bits = options.bits
        self.length, self.max_length = options.start_length, options.max_length
        self.solved_below = options.solved_below
        self.recent: list[float] = []
        self.figures = dict.fromkeys(self.FIGURES, 0)

    @property
    def stage(self) -> int:
        """Where the curriculum is: 1 for sequences of the smallest size there is."""
        return self.length

    @property
    def stages(self) -> int:
        """Its last stage."""
        return self.max_length

    @abc.abstractmethod
    def score(self) -> dict[str, int]:
        """The figures that sequences of this size, solved, are worth."""

    def grow(self) -> None:
        """Goes on to the next stage."""
        self.length += 1

    def draw(self) -> Tensor:
        """Vectors [N, B, bits]."""
        return random_bits((self.length, self.batch_size, self.bits), self.generator)

    def observe(self, bits: float) -> None:
        self.recent = [*self.recent[1 - RECENT :], bits]
        if len(self.recent) < RECENT or sum(self.recent) / RECENT >= self.solved_below:
            return
        self.figures = self.score()
        if self.stage < self.stages:
            self.grow()
            self.recent = []

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            **{name: getattr(self, name) for name in self.SIZE},
            **self.figures,
            "recent": list(self.recent),
        }

    def load_state_dict(self, state: dict) -> None:
        # The size first: what is under way is laid out by it.
        for name in self.SIZE:
            setattr(self, name, state[name])
        super().load_state_dict(state)
        self.figures = {name: state[name] for name in self.FIGURES}
        self.recent = list(state["recent"])


def check_start(what: str, start: int, largest: int) -> None:
    if start > largest:
        raise ValueError(f"--start-{what} must be at most --max-{what} {largest}; got {start}")


def random_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).float()


def fresh_bits(length: int, bits: int) -> Tensor:
    """Vectors [N, TESTED, bits] to test on, the same every time."""
    # Seeded differently from training, whose seeds are small.
    generator = torch.Generator().manual_seed(2**40 + length)
    return random_bits((length, TESTED, bits), generator)


def mean_bit_nats(logits: Tensor, y: Tensor) -> Tensor:
    """The nats [T, B] of a vector, meaned over its bits, so that figures don't depend on --bits."""
    return bit_nats(logits, y) / y.shape[-1]


def make(options: NetworkOptions, inputs: int, outputs: int) -> SequenceModel:
    return make_model(options, nn.Identity(), inputs, outputs, mean_bit_nats)


def measure(model: SequenceModel, batches: Sequence[Batch]) -> list[float]:
    """The error on each batch of whole sequences, in bits per predicted bit."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return [error_on(model, batch) for batch in batches]
    finally:
        model.train(training)


def error_on(model: SequenceModel, batch: Batch) -> float:
    batch = batch.to(device_of(model))
    logits, _ = model.unroll(batch.x, model.initial_state(batch.x.shape[1]), 0)
    counted = batch.weight[:, 0].bool()
    return float(model.loss(logits[counted], batch.y[counted]).mean()) / math.log(2)


def build(
    name: str,
    options: SequenceOptions,
    stream: BitStream,
    make: Callable[[Any], SequenceModel],
    fresh: Callable[[int], Batch],
    counted: float,
    notice: str,
) -> Task:
    """Everything that training needs, from the options.

    fresh: sequences to test on, the same every time, of a length, and otherwise of the stream's
        present size.
    counted: targets of a sequence in an update, about.
    """
    torch.manual_seed(options.seed)

    def evaluate(model: SequenceModel) -> dict[str, float]:
        """How far the curriculum is, and the error at its present stage.

        bits is what is left of the curriculum: the mean error over all stages, where those solved
        count 0 and those not reached count as guessed, 1. So the best model is the farthest.
        """
        (error,) = measure(model, [fresh(stream.length)])
        left = stream.stages - stream.stage + min(error, 1.0)
        return {"bits": left / stream.stages, "error": error, **stream.figures}

    return Task(
        make(options),
        stream,
        evaluate,
        lambda model: dict(stream.figures),
        options.batch * counted,
        {"task": name, **identity(options)},
        notice,
        # Whole sequences of the present size, but not so short that they are not cut.
        lambda steps: fresh(max(stream.length, chunk_steps(options))),
    )
