"""signal: sums of sines of separated periods, sampled evenly or at random times.

With --goal continue the first half of a sequence is given, and the second half is to be predicted without it:
what a clockwork network was made for, to generate a signal of many rates from what it holds of it. With
--goal tuned every sine is at its period or off it, and at the end it is to be predicted of each which: what
phased LSTMs were made for.

Source: in the manner of Koutnik et al., A Clockwork RNN, ICML 2014, section 4.1 (sequence generation)
and Neil et al., Phased LSTM, NIPS 2016, section 3.1 (frequency discrimination, at even and at random
times, of sums too); the signals themselves are our own.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from dnirnn.config.network import NetworkOptions, make_model
from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, Task, TaskOptions
from dnirnn.data import Batch
from dnirnn.data.drawn import DrawnStream
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel, bit_nats, squared_error
from dnirnn.options import option, override
from dnirnn.tasks.measured import TEST, make_task, measure

FIGURES = (
    Figure("test_error", "test, error", "{:.4f}", True),
    Figure("error", "validation, error", "{:.4f}", True),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "targets", "batches of sequences"
DATA: set[str] = set()  # options of it that `eval` takes
TESTED = 1024  # sequences that an evaluation runs
TUNED = math.log(1.1)  # how far the logarithm of a period may be off, and be in tune
OUT_OF_TUNE = math.log(1.25), math.log(2.0)  # how far it is off if not
MOST = 5  # sines


@dataclasses.dataclass(frozen=True, init=False)
class SignalForm(OptionGroup):
    """signals"""

    goal: str = option(
        "continue",
        "continue: the first half is given, the second to be predicted; tuned: all is given, and at the end it"
        " is to be predicted of each sine whether its period is the one of --sines",
        choices=("continue", "tuned"),
    )
    sines: tuple = option(
        (8.0, 32.0, 128.0), f"periods of the sines, ascending, at most {MOST}, each at least 1.5 times the"
        " one before", "STEPS", many=float, above=0,
    )  # fmt: skip
    uneven: bool = option(
        False, "sampled at random times, one a step in the mean, which a core that takes times is given"
    )
    length: int = option(128, "length of a sequence", "STEPS", at_least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        apart = all(low * 1.5 <= high for low, high in zip(self.sines, self.sines[1:]))
        if not 1 <= len(self.sines) <= MOST or not apart:
            raise ValueError(
                f"--sines must be 1 to {MOST} periods, each at least 1.5 times the one before; got"
                f" {' '.join(map('{:g}'.format, self.sines))}"
            )


@dataclasses.dataclass(frozen=True, init=False)
class SignalOptions(SignalForm, NetworkOptions, TaskOptions):
    evaluate_every: int = override(TaskOptions, "evaluate_every", default=200_000)
    log_every: int = override(TaskOptions, "log_every", default=20_000)


Options = SignalOptions


class SignalStream(DrawnStream):
    """Sequences of a signal s(t) = sqrt(2 / k) sum_i sin(2 pi t / p_i + phase_i), whose mean square is 1.

    x: [T, B, 4], the signal, zero where it is to be predicted; the time since the step before; the time
    over the sequence's length; 1 where the signal is given. times: [T, B]. y: [T, B, 1], the signal, of
    which the second half counts; or [T, B, k], 1 for each sine in tune, of which the last step counts.
    label: these bits, or [B, 0].
    """

    def __init__(self, options: SignalOptions, batch_size: int, seed: int):
        super().__init__(batch_size, seed)
        self.options = options

    def draw(self) -> Tensor:
        """Everything random, [T + 3 k, B], uniform: times, phases, whether and how far out of tune."""
        rows = self.options.length + 3 * len(self.options.sines)
        return torch.rand(rows, self.batch_size, generator=self.generator, dtype=torch.float64)

    def lay_out(self, drawn: Tensor) -> Batch:
        options, k = self.options, len(self.options.sines)
        length = options.length
        times, phases, tuned, off = drawn.split([length, k, k, k])
        times = length * times.sort(0).values if options.uneven else even(times)
        periods = torch.tensor(options.sines, dtype=torch.float64)[:, None]
        if options.goal == "tuned":
            periods = periods * torch.where(tuned < 0.5, near(off), far(off)).exp()
        angles = 2 * math.pi * (times[:, None] / periods + phases)
        signal = math.sqrt(2 / k) * angles.sin().sum(1)
        given = torch.ones_like(signal)
        if options.goal == "continue":
            given[length // 2 :] = 0
            weight, y, label = 1 - given, signal[..., None], signal.new_zeros(self.batch_size, 0)
        else:
            weight = torch.zeros_like(signal)
            weight[-1] = 1
            label = (tuned < 0.5).double().T
            y = label.expand(length, -1, -1)
        gaps = times.diff(dim=0, prepend=times[:1])
        x = torch.stack([signal * given, gaps, times / length, given], -1).float()
        return Batch(x, y.float(), weight.float(), True, True, None, label.float(), None, times)


def even(times: Tensor) -> Tensor:
    """0, 1, 2, ... in every row."""
    return torch.arange(len(times), dtype=times.dtype)[:, None].expand_as(times)


def near(uniform: Tensor) -> Tensor:
    """The logarithm of a factor within what is in tune."""
    return TUNED * (2 * uniform - 1)


def far(uniform: Tensor) -> Tensor:
    """That of one that is not, shorter or longer as likely."""
    low, high = OUT_OF_TUNE
    side = 2 * uniform - 1
    return side.sign() * (low + (high - low) * side.abs())


def fresh(options: SignalOptions, seed: int) -> list[Batch]:
    """Whole sequences that are none of training's, the same every time."""
    return [SignalStream(options, TESTED, seed).next(None)]


def make(options: SignalOptions) -> SequenceModel:
    k = len(options.sines)
    if options.goal == "continue":
        return make_model(options, nn.Identity(), 4, 1, squared_error)
    return make_model(options, nn.Identity(), 4, k, bit_nats, label_size=k)


def sums(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Of what counts: "loss", squared or in nats, and "error", squared or the share that is wrong."""
    asked = batch.weight.bool()[:, 0]
    predicted, y = outputs[asked], batch.y[asked]
    if len(predicted) > 1:
        squared = squared_error(predicted.double(), y.double()).mean(0)
        return {"loss": squared, "error": squared}
    wrong = ((predicted > 0) != (y > 0.5)).double().mean((0, 2))
    return {"loss": bit_nats(predicted.double(), y.double())[0], "error": wrong}


def build(options: SignalOptions) -> Task:
    """Everything that training needs, from the options."""
    torch.manual_seed(options.seed)
    asked = options.length - options.length // 2 if options.goal == "continue" else 1
    return make_task(
        "signal",
        options,
        make(options),
        SignalStream(options, options.batch, options.seed),
        lambda seed: fresh(options, seed),
        sums,
        "loss",
        asked,
        notice(options),
        options.length,
    )


def notice(options: SignalOptions) -> str:
    how = "at random times" if options.uneven else "evenly"
    what = f"signal: sines of periods {named(options)}, {how}, {options.length} steps"
    if options.goal == "continue":
        return f"{what}; the second half predicted unseen; always predicting 0 has a mean squared error of 1"
    return f"{what}; which of them are in tune; the best guess is wrong in 0.5"


def named(options: SignalOptions, between: str = " ") -> str:
    return between.join(map("{:g}".format, options.sines))


def subject(options: SignalOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.goal}{'-uneven' if options.uneven else ''}-{named(options, '_')}"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(SignalOptions, config)), None


def evaluate(config: dict, model: SequenceModel) -> list[str]:
    """Lines that report the model's error on fresh sequences."""
    options = from_config(SignalOptions, config)
    found = measure(model, fresh(options, TEST), sums)
    return [f"error: {found['error']:.4f}", notice(options)]
