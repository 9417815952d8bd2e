"""repeat-copy: read a sequence of random bits, then write it so many times, then an end marker.

Source: Graves et al., Neural Turing Machines, 2014, section 4.2; the curriculum as in Jaderberg et
al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section 3.2. The steps are
laid out as in Graves et al.'s own later code and in that of BP(lambda), (R + 1) N + 3 of them: a
delimiter before the vectors too. The figures of the table in Jaderberg et al. are all of that form
(7, 19, 23, 33, 39, 59, 67) on the way of the curriculum below, so that they seem to count steps;
hence both figures here.
"""

import dataclasses

import torch
from torch import Tensor

from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, Task, steps_per_update
from dnirnn.data import Batch
from dnirnn.model import SequenceModel
from dnirnn.options import option, override
from dnirnn.tasks import bit_sequences
from dnirnn.tasks.bit_sequences import (
    DECAY,
    BitStream,
    CurriculumOptions,
    SequenceOptions,
    check_start,
    fresh_bits,
    measure,
)

__all__ = ["DECAY", "RepeatCopyOptions", "RepeatCopyStream", "build", "evaluate", "restore"]

FIGURES = (
    Figure("solved", "largest length times repeats solved", "{:.1f}", False),
    Figure("solved_steps", "steps of the largest sequence solved", "{:.1f}", False),
    Figure("error", "error at the size after it, bits per bit", "{:.3f}", True),
)
UNIT, EPOCHS = "vectors to predict", "batches of sequences"
DATA: set[str] = set()  # options of it that `eval` takes
TEN = 10  # repeats that are 1 in the count's channel


@dataclasses.dataclass(frozen=True, init=False)
class RepeatOptions(SequenceOptions):
    """repeats"""

    start_repeats: int = option(1, "repeats of the first sequences", "REPEATS", at_least=1)
    max_repeats: int = option(
        10, "repeats at which the curriculum stops growing, and up to which is tested", "REPEATS",
        at_least=1,
    )


@dataclasses.dataclass(frozen=True, init=False)
class RepeatCopyOptions(RepeatOptions, CurriculumOptions):
    # Graves et al. draw both from 1 to 10.
    max_length: int = override(SequenceOptions, "max_length", default=10)


Options = RepeatCopyOptions


class RepeatCopyStream(BitStream):
    """Sequences of (R + 1) N + 3 steps: a delimiter, N vectors of random bits, their count of
    repeats R, then silence: R N steps to write them R times, and one for the end marker.

    x: [T, B, bits + 2]; the last two channels are the delimiter and R / 10. y: [T, B, bits + 1],
    what to predict; the last channel is the end. Only the last R N + 1 steps count. N and R grow by one
    in turn, N first; one alone where the other is at its largest.

    repeats: R of the next sequences, grown so far.
    """

    SIZE = ("length", "repeats")
    FIGURES = ("solved", "solved_steps")

    def __init__(self, options: RepeatCopyOptions):
        super().__init__(options)
        check_start("repeats", options.start_repeats, options.max_repeats)
        self.repeats, self.max_repeats = options.start_repeats, options.max_repeats
        self.ahead = options.start_length - options.start_repeats

    @property
    def stage(self) -> int:
        return self.length + self.repeats - 1

    @property
    def stages(self) -> int:
        return self.max_length + self.max_repeats - 1

    def score(self) -> dict[str, int]:
        steps = steps_of(self.length, self.repeats)
        return {"solved": self.length * self.repeats, "solved_steps": steps}

    def grow(self) -> None:
        in_turn = self.length - self.repeats <= self.ahead
        if self.repeats == self.max_repeats or in_turn and self.length < self.max_length:
            self.length += 1
        else:
            self.repeats += 1

    def lay_out(self, vectors: Tensor) -> Batch:
        return lay_out(vectors, self.repeats)


def steps_of(length: int, repeats: int) -> int:
    return (repeats + 1) * length + 3


def lay_out(vectors: Tensor, repeats: int) -> Batch:
    """The steps of the sequences whose vectors to repeat are [N, B, bits]."""
    length, batch_size, bits = vectors.shape
    steps, read = steps_of(length, repeats), length + 2
    x = torch.zeros(steps, batch_size, bits + 2)
    x[0, :, bits] = 1
    x[1 : length + 1, :, :bits] = vectors
    x[length + 1, :, bits + 1] = repeats / TEN
    y = torch.zeros(steps, batch_size, bits + 1)
    y[read:-1, :, :bits] = vectors.repeat(repeats, 1, 1)
    y[-1, :, bits] = 1
    weight = torch.zeros(steps, batch_size)
    weight[read:] = 1
    return Batch(x, y, weight, True, True)


def fresh(length: int, repeats: int, options: RepeatCopyOptions) -> Batch:
    """Sequences to test on, the same every time."""
    return lay_out(fresh_bits(length, options.bits), repeats)


def make(options: RepeatCopyOptions) -> SequenceModel:
    return bit_sequences.make(options, options.bits + 2, options.bits + 1)


def build(options: RepeatCopyOptions) -> Task:
    """Everything that training needs, from the options."""
    steps, stream = steps_per_update(options), RepeatCopyStream(options)
    longest, most = options.max_length, options.max_repeats
    # A whole sequence, and of one the share that counts, are taken as they end with at most.
    whole = most * longest + 1
    return bit_sequences.build(
        "repeat-copy",
        options,
        stream,
        make,
        lambda length: fresh(length, stream.repeats, options),
        whole if steps is None else steps * whole / steps_of(longest, most),
        notice(options),
    )


def notice(options: RepeatCopyOptions) -> str:
    return (
        f"repeat-copy: vectors of {options.bits} bits, lengths {options.start_length} to"
        f" {options.max_length}, repeats {options.start_repeats} to {options.max_repeats}; solved"
        f" below {options.solved_below} bits per bit, the end's among them"
    )


def subject(options: RepeatCopyOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.bits}bit"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(RepeatCopyOptions, config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that report what the model solves of fresh sequences, and a table of its errors."""
    options = from_config(RepeatCopyOptions, config)
    lengths, repeats = range(1, options.max_length + 1), range(1, options.max_repeats + 1)
    rows = [measure(model, [fresh(n, r, options) for r in repeats]) for n in lengths]
    solved = [
        (n * r, n, r)
        for n, row in zip(lengths, rows)
        for r, error in zip(repeats, row)
        if error < options.solved_below
    ]
    most, n, r = max(solved, default=(0, 0, 0))
    return [
        f"largest length times repeats solved: {most}"
        + (f", {n} vectors {r} times in {steps_of(n, r)} steps" if most else ""),
        "error by length (down) and repeats (across), bits per bit:",
        "    " + "".join(f"{r:>6}" for r in repeats),
        *(f"{n:>4}" + "".join(f"{error:6.3f}" for error in row) for n, row in zip(lengths, rows)),
        notice(options),
    ]
