"""copy: read a sequence of random bits, then reproduce it from memory.

Source: Graves et al., Neural Turing Machines, 2014, section 4.1; the curriculum as in Jaderberg et
al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section 3.2.
"""

import dataclasses

import torch
from torch import Tensor

from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, Task, steps_per_update
from dnirnn.data import Batch
from dnirnn.model import SequenceModel
from dnirnn.tasks import bit_sequences
from dnirnn.tasks.bit_sequences import DECAY, BitStream, CurriculumOptions, fresh_bits, measure

__all__ = ["DECAY", "CopyOptions", "CopyStream", "build", "evaluate", "restore"]

FIGURES = (
    Figure("solved", "longest length solved", "{:.1f}", False),
    Figure("error", "error at the length after it, bits per bit", "{:.3f}", True),
)
UNIT, EPOCHS = "vectors to copy", "batches of sequences"
DATA: set[str] = set()  # options of it that `eval` takes


@dataclasses.dataclass(frozen=True, init=False)
class CopyOptions(CurriculumOptions):
    pass


Options = CopyOptions


class CopyStream(BitStream):
    """Sequences of 2 N + 1 steps: N vectors of random bits, a delimiter, N steps of silence.

    x: [T, B, bits + 1]; the last channel is the delimiter. y: [T, B, bits], what to predict. Only the
    last N steps count. N grows by one.
    """

    def score(self) -> dict[str, int]:
        return {"solved": self.length}

    def lay_out(self, vectors: Tensor) -> Batch:
        return lay_out(vectors)


def lay_out(vectors: Tensor) -> Batch:
    """The steps of the sequences whose vectors to copy are [N, B, bits]."""
    length, batch_size, bits = vectors.shape
    x = torch.zeros(2 * length + 1, batch_size, bits + 1)
    x[:length, :, :bits] = vectors
    x[length, :, bits] = 1
    y = torch.zeros(2 * length + 1, batch_size, bits)
    y[length + 1 :] = vectors
    weight = torch.zeros(2 * length + 1, batch_size)
    weight[length + 1 :] = 1
    return Batch(x, y, weight, True, True)


def fresh(length: int, options: CopyOptions) -> Batch:
    """Sequences to test on, the same every time."""
    return lay_out(fresh_bits(length, options.bits))


def make(options: CopyOptions) -> SequenceModel:
    return bit_sequences.make(options, options.bits + 1, options.bits)


def build(options: CopyOptions) -> Task:
    """Everything that training needs, from the options."""
    steps = steps_per_update(options)
    return bit_sequences.build(
        "copy",
        options,
        CopyStream(options),
        make,
        lambda length: fresh(length, options),
        # Half of the steps count. A whole sequence is taken at the length it ends with at most.
        options.max_length if steps is None else steps / 2,
        notice(options),
    )


def notice(options: CopyOptions) -> str:
    return (
        f"copy: vectors of {options.bits} bits, lengths {options.start_length} to"
        f" {options.max_length}; a length is solved below {options.solved_below} bits per bit"
    )


def subject(options: CopyOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.bits}bit"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(CopyOptions, config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that report which lengths the model solves on fresh sequences, and its errors."""
    options = from_config(CopyOptions, config)
    lengths = list(range(1, options.max_length + 1))
    errors = measure(model, [fresh(length, options) for length in lengths])
    solved = [n for n, error in zip(lengths, errors) if error < options.solved_below]
    by_length = ", ".join(f"{n}: {error:.3f}" for n, error in zip(lengths, errors))
    return [
        f"longest length solved: {max(solved, default=0)}",
        f"error by length, bits per bit: {by_length}",
        notice(options),
    ]
