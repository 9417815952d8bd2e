"""digits: two networks of two rates count what passes by: a stream of pictures of digits.

Network A sees a digit a step and answers, every T steps, how many of the last T were odd. Network B
ticks once every T steps, reads A's messages only, and answers, every T of its ticks, how many of the last T * T
digits were threes. So A must tell B what A itself is never asked.

Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section
3.2. Of the task's details the paper leaves some open; here a sequence is a number of windows of
T * T digits, and the state starts anew with it, so that both networks can know where a window ends.
What is cut there, and with --cuts messages here, is A in time and the messages; only that of a window's
last tick is read by B in the same chunk, and learns from B uncut.
"""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import Hierarchy, SyntheticGradient
from dnirnn.config.network import NetworkOptions, assemble, device_of, make_truncated
from dnirnn.config.parallel import Sharing, check_in_parts, in_parts
from dnirnn.config.saved import from_config, identity
from dnirnn.config.task import Figure, Task, TaskOptions, steps_per_update
from dnirnn.data import Batch, Stream, images
from dnirnn.data.images import Images
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel, in_float32
from dnirnn.options import choice, option, override
from dnirnn.tasks.digits.parts import NOT_ASKED, in_networks
from dnirnn.training.trainer import Trainer

FIGURES = (
    Figure("test_threes", "test, counts of 3s right", "{:.3f}", False),
    Figure("test_odd", "test, counts of odd ones right", "{:.3f}", False),
    Figure("threes", "validation, counts of 3s right", "{:.3f}", False),
    Figure("odd", "validation, counts of odd ones right", "{:.3f}", False),
    Figure("bits", "validation, bits per digit", "{:.4f}", True),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "digits", "epochs"
DATA = {"split", "data_dir"}  # what `eval` may be given of it
FOUND = ("pixels", "images_sha256")  # what it adds to a run's configuration
TRAININGS = ("full", "truncated", "dni")
COMPARED = {"core": ("lstm",), "training": TRAININGS}
TESTED = 128  # sequences that an evaluation runs


@dataclasses.dataclass(frozen=True, init=False)
class CountingOptions(OptionGroup):
    """digits"""

    digits: str = option(
        "builtin",
        "the pictures: mnist, or builtin: scikit-learn's 8 x 8, nothing to download",
        choices=("builtin", "mnist"),
    )
    data_dir: str | None = option(
        None, "with mnist: the folder of its idx files", "FOLDER", shown="downloaded from the hub",
        place=True,
    )
    period: int = option(
        4,
        "T: digits from one tick of network B to the next, which A counts the odd ones of; B counts"
        " the 3s of T * T",
        "STEPS",
        at_least=1,
    )
    windows: int = option(8, "T * T digits, so many times, are a sequence", "WINDOWS", at_least=1)
    front: tuple = option(
        (256, 256), "widths of the layers between a picture and network A", "UNITS",
        at_least=1, many=int,
    )
    training: str | None = option(
        None,
        "sets --truncation and --estimator: full (backpropagation over B's horizon of T * T steps,"
        " for which every update waits), truncated (cut and updated at each of B's ticks) or dni"
        " (the same with synthetic gradients)",
        choices=TRAININGS,
        shown="dni, unless they say otherwise",
        identity=False,
    )
    cuts: str | None = option(
        None,
        "what is cut at each of B's ticks: messages (network A in time, and what the two send to each"
        " other; B is carried back through the T ticks of its own window, as the paper has it; a message is"
        " then discounted at up to T - 1 cuts, so give a --discount near 1) or ticks (B too, whose own next"
        " ticks are predicted)",
        choices=("messages", "ticks"),
        shown="messages; ticks with --parallel decoupled",
    )
    message_delay: int | None = option(
        None, "ticks of B by which its message reaches A late, so that A need not wait for one", "TICKS",
        at_least=0, shown="0; 1 with --parallel decoupled",
    )  # fmt: skip
    parallel: Sharing = choice(
        Sharing.registry, "data", "what torchrun's processes share; decoupled: A and B, one each"
    )


@dataclasses.dataclass(frozen=True, init=False)
class DigitsOptions(CountingOptions, NetworkOptions, TaskOptions):
    truncation: int | None = override(
        NetworkOptions, "truncation", default=None, shown="--period"
    )

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("training") not in TRAININGS:
            return values
        estimator = "dni" if values["training"] == "dni" else "none"
        named = getattr(values.get("estimator"), "name", "") == estimator
        return values if named else {**values, "estimator": estimator}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training is not None:
            horizon = self.period * (self.period if self.training == "full" else 1)
            object.__setattr__(self, "truncation", horizon)
        if self.truncation is None:
            object.__setattr__(self, "truncation", self.period)
        if self.message_delay is None:
            object.__setattr__(self, "message_delay", int(in_parts(self)))
        if self.cuts is None:
            object.__setattr__(self, "cuts", "ticks" if in_parts(self) else "messages")
        check_in_parts(self)
        if in_parts(self) and self.cuts != "ticks":
            raise ValueError(f"--parallel decoupled cuts B at its ticks: --cuts ticks; got {self.cuts}")
        if in_parts(self) and {self.truncation, self.update_steps or self.period} != {self.period}:
            raise ValueError(
                "--parallel decoupled updates at every tick: --truncation and --update-steps must be"
                f" --period {self.period}; got {self.truncation} and {self.update_steps}"
            )
        if self.parameters is not None:
            raise ValueError(
                "--parameters does not go with digits, whose two networks share --hidden;"
                f" got {self.parameters}"
            )


Options = DigitsOptions


class DigitStream(Stream):
    """Sequences of digits drawn at random, and their targets.

    x: [T, B, P], pixels from 0 to 1. y: [T, B, 2], see :func:`counts`. An epoch is as many digits
    as there are pictures.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        white: int,
        batch_size: int,
        period: int,
        windows: int,
        seed: int,
    ):
        self.pixels, self.labels, self.white = pixels, labels, white
        self.batch_size, self.period = batch_size, period
        self.steps = windows * period**2
        self.generator = torch.Generator().manual_seed(seed)
        self.position, self.seen = 0, 0
        self.sequence: Tensor | None = None

    @property
    def epochs(self) -> float:
        return self.seen / len(self.labels)

    def next(self, steps: int | None) -> Batch:
        if self.position == 0:
            shape = (self.steps, self.batch_size)
            self.sequence = torch.randint(len(self.labels), shape, generator=self.generator)
        start = self.position
        end = self.steps if steps is None else min(start + steps, self.steps)
        final = end == self.steps
        self.position = 0 if final else end
        self.seen += (end - start) * self.batch_size
        following = None if final else self.part(end, end + 1)
        return self.part(start, end)._replace(first=start == 0, final=final, following=following)

    def part(self, start: int, end: int) -> Batch:
        x = self.pixels[self.sequence[start:end]].float() / self.white
        return Batch(x, counts(self.labels[self.sequence], self.period)[start:end])

    def state_dict(self) -> dict:
        state = {
            "position": self.position,
            "seen": self.seen,
            "generator": self.generator.get_state(),
        }
        if self.position:
            state["sequence"] = self.sequence.clone()
        return state

    def load_state_dict(self, state: dict) -> None:
        self.position, self.seen = state["position"], state["seen"]
        self.generator.set_state(state["generator"])
        self.sequence = state.get("sequence")


def counts(labels: Tensor, period: int) -> Tensor:
    """The targets after each digit: [T, B, 2] for labels [T, B], T a multiple of period^2.

    First how many of the last ``period`` are odd, then how many of the last period^2 are threes;
    -1 where that is not asked, which is everywhere but at each one's end.
    """
    y = torch.full((*labels.shape, 2), NOT_ASKED)
    for place, found, over in ((0, labels % 2 == 1, period), (1, labels == 3, period**2)):
        y[over - 1 :: over, :, place] = found.unflatten(0, (-1, over)).sum(1)
    return y


class Answers(nn.Module):
    """The logits of A's count, of 0 to T, from A's output, then of B's, 0 to T * T, from B's."""

    def __init__(self, core: Hierarchy):
        super().__init__()
        self.sizes = [core.fast.output_size, core.slow.output_size]
        self.odd = nn.Linear(self.sizes[0], core.period + 1)
        self.threes = nn.Linear(self.sizes[1], core.period**2 + 1)

    def forward(self, outputs: Tensor) -> Tensor:
        fast, slow = outputs.split(self.sizes, -1)
        return torch.cat([self.odd(fast), self.threes(slow)], -1)


def divide(logits: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """A's logits and B's, of both."""
    return logits.split([period + 1, period**2 + 1], -1)


def answer_nats(logits: Tensor, y: Tensor, period: int) -> Tensor:
    """The nats [T, B] of both counts together; 0 where none is asked."""
    nats = [
        F.cross_entropy(predicted.flatten(0, 1), asked, ignore_index=NOT_ASKED, reduction="none")
        for predicted, asked in zip(divide(in_float32(logits), period), y.flatten(0, 1).unbind(-1))
    ]
    return sum(nats).view(y.shape[:2])


def spell(y: Tensor, period: int) -> Tensor:
    """Both counts, one-hot, [T, B, all logits]; zeros where none is asked."""
    parts = [
        F.one_hot(count.clamp(min=0), most + 1) * (count != NOT_ASKED)[..., None]
        for count, most in zip(y.unbind(-1), (period, period**2))
    ]
    return torch.cat(parts, -1)


def make(options: DigitsOptions, pixels: int) -> SequenceModel:
    """pixels -> MLP -> A and B, truncated -> both answers."""
    layers = [f for size in zip((pixels, *options.front), options.front) for f in (nn.Linear(*size), nn.ReLU())]
    with torch.device("meta"):
        message = options.core.build(1).output_size
    fast = options.core.build(options.front[-1] + message)
    # Where nothing is cut within T * T steps, B is carried back so far anyway.
    shorter = {one < options.period**2 for one in (options.truncation, *options.truncation_plan)}
    cut = options.cuts == "messages" and True in shorter
    if cut and False in shorter:
        raise ValueError("--truncation-plan: with --cuts messages all must be below --period squared, or none")
    back = options.period if cut else 1
    core = Hierarchy(fast, options.core.build(message), options.period, back, options.message_delay)
    truncated = make_truncated(options, core, options.period + options.period**2 + 2)
    loss, context_of = (partial(of, period=options.period) for of in (answer_nats, spell))
    model = assemble(options, nn.Sequential(*layers), truncated, Answers(core), loss, context_of)
    if in_parts(options):
        model.cuts = nn.ModuleList(SyntheticGradient(message, (), 1.0, 1.0) for _ in range(2))
    return model


def measure(model: SequenceModel, stream: DigitStream) -> dict[str, float]:
    """Of a stream's next sequence, {"bits": per digit, "odd", "threes": shares of counts right}."""
    training = model.training
    model.eval()
    device = device_of(model)
    nats, right, asked = 0.0, torch.zeros(2, device=device), torch.zeros(2, device=device)
    state, t, final = model.initial_state(stream.batch_size), 0, False
    try:
        with torch.no_grad():
            while not final:
                batch = stream.next(stream.period**2).to(device)
                logits, state = model.unroll(batch.x, state, t)
                nats += float(model.loss(logits, batch.y).sum(dtype=torch.float64))
                predicted = [part.argmax(-1) for part in divide(logits, stream.period)]
                right += (torch.stack(predicted, -1) == batch.y).sum((0, 1))
                asked += (batch.y != NOT_ASKED).sum((0, 1))
                t, final = t + len(batch.x), batch.final
    finally:
        model.train(training)
    odd, threes = (right / asked).tolist()
    return {"bits": nats / (t * stream.batch_size) / math.log(2), "odd": odd, "threes": threes}


def stream_of(known: Images, split: str, options: DigitsOptions, batch: int, seed: int):
    parts = (*known.splits[split], known.white)
    return DigitStream(*parts, batch, options.period, options.windows, seed)


def held_out(known: Images, split: str, options: DigitsOptions) -> DigitStream:
    """The same sequence of validation or test digits every time that it is made."""
    # Seeded apart from training, whose seeds are small.
    return stream_of(known, split, options, TESTED, 2**40)


def build(options: DigitsOptions) -> Task:
    """Everything that training needs, from the options.

    Raises ValueError or OSError, naming the option, for images that can't be read.
    """
    steps = steps_per_update(options)
    known = images.load(options.digits, options.data_dir)
    stream = stream_of(known, "train", options, options.batch, options.seed)
    torch.manual_seed(options.seed)
    model = make(options, known.splits["train"][0].shape[1])

    def test(model: SequenceModel) -> dict[str, float]:
        found = measure(model, held_out(known, "test", options))
        return {f"test_{name}": value for name, value in found.items()}

    return Task(
        model,
        stream,
        lambda model: measure(model, held_out(known, "valid", options)),
        test,
        options.batch * (stream.steps if steps is None else steps),
        {
            "task": "digits",
            **identity(resolve(options)),
            "pixels": known.splits["train"][0].shape[1],
            "images_sha256": known.fingerprint(),
        },
        notice(known, options),
        lambda steps: held_out(known, "valid", options).next(steps),
    )


def attach(trainer: Trainer, options: DigitsOptions) -> None:
    """Has the two networks updated by themselves, where they are to be."""
    if in_parts(options):
        trainer.updater = in_networks(trainer, options.staleness)


def notice(known: Images, options: DigitsOptions) -> str:
    labels = known.splits["test"][1]
    guesses = [
        commonest(float((labels % 2 == 1).double().mean()), options.period),
        commonest(float((labels == 3).double().mean()), options.period**2),
    ]
    return (
        f"odd ones of {options.period} and 3s of {options.period**2} digits, {known.describe()};"
        f" the best guess is right in {guesses[0]:.3f} and {guesses[1]:.3f}"
    )


def commonest(share: float, over: int) -> float:
    """How often the commonest count comes, of what makes up ``share`` of all."""
    return max(
        math.comb(over, n) * share**n * (1 - share) ** (over - n) for n in range(over + 1)
    )


def resolve(options: DigitsOptions) -> DigitsOptions:
    """The same options with an absolute path, so that a run can be found again from elsewhere."""
    if options.data_dir is None:
        return options
    return dataclasses.replace(options, data_dir=str(Path(options.data_dir).resolve()))


def subject(options: DigitsOptions) -> str:
    """The task's part of a run folder's name."""
    return f"{options.digits}{options.period}"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(DigitsOptions, config), config["pixels"]), None


def evaluate(config: dict, model: SequenceModel, split: str) -> list[str]:
    """Lines that say how many counts of a split's digits are right.

    Raises ValueError where the images are not those that the run was trained on.
    """
    options = from_config(DigitsOptions, config)
    known = images.load(options.digits, options.data_dir)
    if known.fingerprint() != config["images_sha256"]:
        raise ValueError(f"{known.name}: these are not the images that the run was trained on")
    found = measure(model, held_out(known, split, options))
    return [
        f"{split}, counts of 3s right: {found['threes']:.3f}, of odd ones: {found['odd']:.3f};"
        f" bits per digit: {found['bits']:.4f}",
        notice(known, options),
    ]
