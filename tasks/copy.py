"""copy: read a sequence of random bits, then say it again from memory.

Source: Graves et al., Neural Turing Machines, 2014, section 4.1; the curriculum as in Jaderberg et
al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section 3.2.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from dnirnn.data import Batch, Stream
from dnirnn.model import SequenceModel, bit_nats
from dnirnn.tasks.network import make_model, unroll
from dnirnn.tasks.options import (
    Checked,
    NetworkOptions,
    RunOptions,
    TrainingOptions,
    option,
    remembered,
)
from dnirnn.tasks.task import Figure, Task, steps_per_update

FIGURES = (
    Figure("solved", "longest length solved", "{:.1f}", False),
    Figure("error", "error at the length after it, bits per bit", "{:.3f}", True),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "vectors to copy", "batches of sequences"
DATA: set[str] = set()  # what `eval` may be told of it
TESTED = 256  # sequences of a length that an evaluation runs
RECENT = 10  # sequences whose mean error decides whether the length grows


@dataclasses.dataclass(frozen=True)
class SequenceOptions(Checked):
    """sequences"""

    bits: int = option(8, "size of the vectors to copy", "BITS", at_least=1)
    start_length: int = option(1, "length of the first sequences", "VECTORS", at_least=1)
    max_length: int = option(
        32, "length at which the curriculum stops growing, and up to which is tested", "VECTORS",
        at_least=1,
    )
    solved_below: float = option(
        0.15,
        "error, in bits per bit copied (a guess costs 1), under which a length counts as solved and"
        " the curriculum goes on to the next",
        "BITS",
        above=0,
    )


@dataclasses.dataclass(frozen=True)
class CopyOptions(SequenceOptions, NetworkOptions, TrainingOptions, RunOptions):
    pass


Options = CopyOptions


class CopyStream(Stream):
    """Sequences of 2 N + 1 steps: N vectors of random bits, a delimiter, N steps of silence.

    x: [T, B, bits + 1]; the last channel is the delimiter. y: [T, B, bits], what to say. Only the
    last N steps count. N grows by one where the mean error of the last sequences at this length
    falls under ``solved_below``.

    length: N of the next sequences, grown so far.
    solved: the longest N whose error fell under ``solved_below``; 0: none.
    """

    def __init__(
        self,
        batch_size: int,
        bits: int,
        start_length: int,
        max_length: int,
        solved_below: float,
        seed: int,
    ):
        if start_length > max_length:
            raise ValueError(
                f"--start-length must be at most --max-length {max_length}; got {start_length}"
            )
        self.batch_size, self.bits = batch_size, bits
        self.length, self.max_length = start_length, max_length
        self.solved_below, self.solved = solved_below, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.recent: list[float] = []
        self.position, self.epochs = 0, 0.0
        self.sequence = None

    def next(self, steps: int | None) -> Batch:
        if self.position == 0:
            self.sequence = copy_batch(self.length, self.batch_size, self.bits, self.generator)
            self.epochs += 1
        whole, start = self.sequence, self.position
        total = len(whole.x)
        end = total if steps is None else min(start + steps, total)
        final = end == total
        self.position = 0 if final else end
        part = slice(start, end)
        following = None if final else whole.x[end]
        return Batch(
            whole.x[part], whole.y[part], whole.weight[part], start == 0, final, following
        )

    def observe(self, bits: float) -> None:
        self.recent = [*self.recent[1 - RECENT :], bits]
        if len(self.recent) < RECENT or sum(self.recent) / RECENT >= self.solved_below:
            return
        self.solved = self.length
        if self.length < self.max_length:
            self.length += 1
            self.recent = []

    def state_dict(self) -> dict:
        state = {
            "length": self.length,
            "solved": self.solved,
            "recent": list(self.recent),
            "position": self.position,
            "epochs": self.epochs,
            "generator": self.generator.get_state(),
        }
        if self.position:
            state["sequence"] = self.sequence.y[len(self.sequence.y) // 2 + 1 :].clone()
        return state

    def load_state_dict(self, state: dict) -> None:
        self.length, self.solved = state["length"], state["solved"]
        self.recent = list(state["recent"])
        self.position, self.epochs = state["position"], state["epochs"]
        self.generator.set_state(state["generator"])
        if self.position:
            self.sequence = lay_out(state["sequence"])


def copy_batch(length: int, batch_size: int, bits: int, generator: torch.Generator) -> Batch:
    """Fresh random sequences of a length, whole."""
    return lay_out(torch.randint(2, (length, batch_size, bits), generator=generator).float())


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


def mean_bit_nats(logits: Tensor, y: Tensor) -> Tensor:
    """The nats [T, B] of a vector, meaned over its bits, so that figures don't depend on --bits."""
    return bit_nats(logits, y) / y.shape[-1]


def measure(model: SequenceModel, lengths: list[int], options: CopyOptions) -> list[float]:
    """The error on fresh sequences of each length, in bits per bit copied; the same every time."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return [error_on(model, fresh_batch(length, options)) for length in lengths]
    finally:
        model.train(training)


def fresh_batch(length: int, options: CopyOptions) -> Batch:
    # Seeded apart from training, whose seeds are small.
    generator = torch.Generator().manual_seed(2**40 + length)
    return copy_batch(length, TESTED, options.bits, generator)


def error_on(model: SequenceModel, batch: Batch) -> float:
    logits, _ = unroll(model, batch.x, model.initial_state(batch.x.shape[1]), 0)
    said = len(batch.x) // 2 + 1
    return float(model.loss(logits[said:], batch.y[said:]).mean()) / math.log(2)


def make(options: CopyOptions) -> SequenceModel:
    return make_model(options, nn.Identity(), options.bits + 1, options.bits, mean_bit_nats)


def build(options: CopyOptions) -> Task:
    """Everything that training needs, from the options."""
    steps = steps_per_update(options)
    stream = CopyStream(
        options.batch,
        options.bits,
        options.start_length,
        options.max_length,
        options.solved_below,
        options.seed,
    )
    torch.manual_seed(options.seed)
    # Half of the steps count. A whole sequence is taken at the length it ends with at most.
    counted = options.max_length if steps is None else steps / 2

    def evaluate(model: SequenceModel) -> dict[str, float]:
        """How far the curriculum is, and the error at its present length.

        bits is what is left of the curriculum: the mean error over all lengths, where those solved
        count 0 and those not reached count as guessed, 1. So the best model is the farthest.
        """
        (error,) = measure(model, [stream.length], options)
        left = options.max_length - stream.length + min(error, 1.0)
        return {"bits": left / options.max_length, "error": error, "solved": stream.solved}

    return Task(
        make(options),
        stream,
        evaluate,
        lambda model: {"solved": stream.solved},
        options.batch * counted,
        {"task": "copy", **remembered(options)},
        notice(options),
        # Whole sequences of the present length, but not so short that they are not cut.
        lambda steps: fresh_batch(max(stream.length, options.truncation), options),
    )


def notice(options: CopyOptions) -> str:
    return (
        f"copy: vectors of {options.bits} bits, lengths {options.start_length} to"
        f" {options.max_length}; a length is solved below {options.solved_below} bits per bit"
    )


def subject(options: CopyOptions) -> str:
    """What a run folder's name says of the task."""
    return f"{options.bits}bit"


def options_of(config: dict) -> CopyOptions:
    names = {field.name for field in dataclasses.fields(CopyOptions)}
    return CopyOptions(**{name: value for name, value in config.items() if name in names})


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(options_of(config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that say which lengths the model solves on fresh sequences, and its errors."""
    options = options_of(config)
    lengths = list(range(1, options.max_length + 1))
    errors = measure(model, lengths, options)
    solved = [n for n, error in zip(lengths, errors) if error < options.solved_below]
    by_length = ", ".join(f"{n}: {error:.3f}" for n, error in zip(lengths, errors))
    return [
        f"longest length solved: {max(solved, default=0)}",
        f"error by length, bits per bit: {by_length}",
        notice(options),
    ]
