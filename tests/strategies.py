"""What the property tests draw from: sizes and a seed, never the elements of a tensor.

Also the test doubles, and the update of a decoupled neural interface written out by hand.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from dnirnn import (
    GRU,
    HMLSTM,
    LSTM,
    RNN,
    Clockwork,
    Core,
    Deep,
    Dilated,
    Every,
    FastSlow,
    FromTorch,
    GradientEstimator,
    Hierarchy,
    NormLSTM,
    PhasedLSTM,
    Skip,
    SyntheticGradient,
    WeightDrop,
)
from dnirnn.core import CORES as REGISTERED

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.append(str(EXAMPLES))
from leaky_stack import LeakyStack  # noqa: E402


class Counter(Core):
    """Counts its steps, ``increment`` a step, and says the count; the input is not read."""

    def __init__(self, increment: float = 1.0):
        super().__init__()
        self.input_size = self.output_size = self.state_size = 1
        self.increment = nn.Parameter(torch.tensor(increment))

    def step(self, x_BI, state_BS, t):
        state = state_BS + self.increment
        return state, state


class Clock(Core):
    """Its output and its state depend on t, the steps since the sequence's start."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size, self.output_size, self.state_size = input_size, hidden_size, hidden_size
        self.inward = nn.Linear(input_size, hidden_size)
        self.recur = nn.Linear(hidden_size, hidden_size)

    def step(self, x_BI, state_BS, t):
        phase = torch.as_tensor(t, dtype=state_BS.dtype).expand(len(state_BS))[:, None]
        state = torch.tanh(self.inward(x_BI) + self.recur(state_BS)) * torch.cos(phase)
        return state * torch.sin(1 + phase), state


class Leaky(Core):
    """A leaky integrator: s' = leak * s + W x. Gradients shrink by ``leak`` a step, exactly."""

    def __init__(self, input_size: int, hidden_size: int, leak: float = 0.8):
        super().__init__()
        self.input_size, self.output_size, self.state_size = input_size, hidden_size, hidden_size
        self.leak = nn.Parameter(torch.tensor(leak))
        self.inward = nn.Linear(input_size, hidden_size, bias=False)

    def step(self, x_BI, state_BS, t):
        state = self.leak * state_BS + self.inward(x_BI)
        return state, state


class Oracle(GradientEstimator):
    """Returns the true future gradient at every boundary of a call, which it was told.

    true: [N + 1, B, S], the gradient at the state that the call enters with, then at each sent.
    ``accumulate`` keeps what it was given, and fits nothing.
    """

    def __init__(self, true: Tensor):
        super().__init__()
        self.true = true

    def forward(self, state):
        return self.true[1:]

    def accumulate(self, entered, target, weight=None):
        if weight is not None:
            entered, target = entered[weight > 0], target[weight > 0]
        self.entered, self.target = entered, target
        true = torch.cat([self.true[:-1].flatten(0, 1), torch.zeros_like(self.true[-1])])
        return 0.5 * (true[: len(target)] - target).square().sum(-1).mean()


def registered(config):
    """What builds the core of a registered Config, as small as it can be."""
    return lambda i, h: config(hidden=h * config().multiple).build(i)


# name: (build, path of dnirnn.LSTM or None). Whatever --core names and has no line here is added.
CORES = {
    "lstm": (lambda i, h: LSTM(i, h), "fused"),
    "lstm-2": (lambda i, h: LSTM(i, h, 2), "fused"),
    "lstm-2-reference": (lambda i, h: LSTM(i, h, 2), "reference"),
    "torch-lstm": (lambda i, h: FromTorch(nn.LSTM(i, h, 2)), None),
    "torch-gru": (lambda i, h: FromTorch(nn.GRU(i, h, 2)), None),
    "torch-rnn": (lambda i, h: FromTorch(nn.RNN(i, h)), None),
    "clock": (Clock, None),
    "leaky": (Leaky, None),
    "norm-lstm": (lambda i, h: NormLSTM(i, h + 2, zoneout_h=0.1, zoneout_c=0.4).eval(), "fused"),
    "norm-lstm-reference": (lambda i, h: NormLSTM(i, h + 2, zoneout_c=0.4).eval(), "reference"),
    "weight-drop": (lambda i, h: WeightDrop(LSTM(i, h, 2), 0.4), "fused"),
    "deep": (
        lambda i, h: Deep([LSTM(i, h), GRU(h + i, h), RNN(h + i, h)], residual=True, skip=True),
        "fused",
    ),
    "every": (lambda i, h: Deep([RNN(i, h), Every(LSTM(h, h), 3)], residual=True), "fused"),
    "every-mean": (lambda i, h: Deep([Every(Clock(i, h), 2, "mean"), RNN(h, h)]), None),
    "every-concat": (
        lambda i, h: Deep([LSTM(i, h), Every(Clock(2 * h, h), 2, "concat")], residual=True),
        "fused",
    ),
    "dilated-rnn": (lambda i, h: Dilated(i, h, [1, 2], "rnn"), None),
    "dilated-gru": (lambda i, h: Dilated(i, h, [3, 1], "gru"), None),
    "dilated": (lambda i, h: Dilated(i, h, [1, 2, 4], "lstm"), "fused"),
    "phased": (lambda i, h: PhasedLSTM(i, h, periods=(1.5, 6.0), open_ratio=0.6), "fused"),
    "phased-eval": (lambda i, h: PhasedLSTM(i, h + 2, open_ratio=0.9).eval(), "reference"),
    "fast-slow": (lambda i, h: FastSlow(i, h, 2, layer_norm=False), None),
    "fast-slow-4": (
        lambda i, h: FastSlow(i, h + 2, h + 2, 4, zoneout_h=0.1, zoneout_c=0.4).eval(),
        None,
    ),
    "skip": (lambda i, h: Skip(LSTM(i, h), bias=-0.5), None),
    "skip-in-deep": (lambda i, h: Deep([RNN(i, h), Skip(Clock(h, h), bias=-1.0)]), None),
    "example": (lambda i, h: LeakyStack(LSTM(i, h)), "reference"),
    "hierarchy": (lambda i, h: Hierarchy(LSTM(i + h, h), LSTM(h, h), 2), "fused"),
    "late hierarchy": (lambda i, h: Hierarchy(LSTM(i + h, h), LSTM(h, h), 2, delay=2), "fused"),
    "hierarchy-back": (lambda i, h: Hierarchy(LSTM(i + h, h), LSTM(h, h), 2, back=3), "fused"),
    "hierarchy-3": (
        lambda i, h: Hierarchy(
            FromTorch(nn.GRU(i + 2 * h, h)), Hierarchy(Clock(2 * h, h), Leaky(h, h), 2), 3
        ),
        None,
    ),
    "hm-lstm": (lambda i, h: HMLSTM(i, h), None),
    "hm-lstm-2-norm": (lambda i, h: HMLSTM(i, h, 2, layer_norm=True), None),
    "clockwork": (lambda i, h: Clockwork(i, 2 * h, (1, 3)), None),
    "clockwork-lstm": (lambda i, h: Clockwork(i, 3 * h, (1, 2, 4), "lstm"), "fused"),
    "clockwork-lstm-reference": (lambda i, h: Clockwork(i, 2 * h, (1, 3), "lstm"), "reference"),
}
for name in sorted(REGISTERED.keys() - CORES.keys()):
    CORES[name] = (registered(REGISTERED[name]), None)
# Those whose gradient is not the derivative, so that finite differences must disagree: they round,
# and go back as if they had not; or leave out what grows with t.
STRAIGHT_THROUGH = {"hm-lstm", "hm-lstm-2-norm", "skip", "skip-in-deep", "phased", "phased-eval"}


class Case(NamedTuple):
    """One call's tensors. y: what the loss compares the outputs with."""

    x: Tensor
    y: Tensor
    state: Tensor
    t0: int | Tensor
    final: bool | Tensor
    reset: Tensor | None


@dataclass(frozen=True)
class Problem:
    """Sizes and a seed; ``case(core)`` draws the tensors. T need not be a multiple of K."""

    steps: int
    batch: int
    truncation: int
    input_size: int
    hidden_size: int
    seed: int
    t0: str = "zero"
    final: str = "no"
    reset: str = "none"

    @property
    def chunks(self) -> int:
        return -(-self.steps // self.truncation)

    def case(self, core: Core) -> Case:
        torch.manual_seed(self.seed + 1)
        steps, batch = self.steps, self.batch
        t0 = {"zero": 0, "int": 7, "rows": torch.randint(0, 9, (batch,))}[self.t0]
        final = {"no": False, "yes": True, "some": torch.rand(batch) < 0.5}[self.final]
        reset = None
        if self.reset != "none":
            reset = torch.rand(steps, batch) < 0.25
        if self.reset == "at cuts":
            reset &= torch.arange(steps)[:, None] % self.truncation == 0
            reset[0, 0] = True
        return Case(
            torch.randn(steps, batch, self.input_size, dtype=torch.float64),
            torch.randn(steps, batch, core.output_size, dtype=torch.float64),
            0.5 * torch.randn(batch, core.state_size, dtype=torch.float64),
            t0,
            final,
            reset,
        )


@st.composite
def problems(draw, t0=("zero",), final=("no",), reset=("none",), max_steps: int = 9) -> Problem:
    steps = draw(st.integers(1, max_steps), label="steps")
    return Problem(
        steps=steps,
        batch=draw(st.integers(1, 3), label="batch"),
        truncation=draw(st.integers(1, steps + 2), label="truncation"),
        input_size=draw(st.integers(1, 3), label="input_size"),
        hidden_size=draw(st.integers(1, 4), label="hidden_size"),
        seed=draw(seeds, label="seed"),
        t0=draw(st.sampled_from(t0), label="t0"),
        final=draw(st.sampled_from(final), label="final"),
        reset=draw(st.sampled_from(reset), label="reset"),
    )


seeds = st.integers(0, 2**16)
any_t0 = ("zero", "int", "rows")
any_final = ("no", "yes", "some")
any_reset = ("none", "anywhere", "at cuts")


@dataclass(frozen=True)
class Fitting:
    """How an estimator is made: all of its layers random, the last one too."""

    hidden: tuple[int, ...]
    scale: float
    discount: float
    seed: int

    def estimator(self, core: Core) -> SyntheticGradient:
        torch.manual_seed(self.seed)
        estimator = SyntheticGradient(core.state_size, self.hidden, self.scale, self.discount)
        nn.init.normal_(estimator.layers[-1].weight)
        nn.init.normal_(estimator.layers[-1].bias)
        return estimator.double()


fittings = st.builds(
    Fitting,
    hidden=st.sampled_from([(), (5,), (4, 3)]),
    scale=st.sampled_from([0.1, 0.7, 1.0]),
    discount=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    seed=seeds,
)


def own_loss(output: Tensor, y: Tensor) -> Tensor:
    """The sequences' own losses, summed over time and batch."""
    return 0.5 * (output - y).square().sum()


class ByHand(NamedTuple):
    """One update as the paper writes it. Lists have one entry a chunk."""

    output: Tensor
    sent: Tensor
    synthetic: Tensor
    targets: Tensor
    core: list[Tensor]
    estimator: list[Tensor]
    error: Tensor


def by_hand(core: Core, estimator, truncation: int, case: Case, unit: float = 1.0) -> ByHand:
    """A chunk at a time, on ``core.step`` alone: what Truncated and backward must equal."""
    steps, batch = case.x.shape[:2]
    parameters = list(core.parameters())
    core_gradient = [torch.zeros_like(p) for p in parameters]
    outputs, entered, sent, synthetic, targets = [], [], [], [], []
    state = case.state
    t = torch.as_tensor(case.t0).expand(batch)
    for begin in range(0, steps, truncation):
        end = min(begin + truncation, steps)
        start = state.detach().requires_grad_()
        entered.append(start.detach())
        state, loss = start, 0.0
        for i in range(begin, end):
            if case.reset is not None:
                state = torch.where(case.reset[i, :, None], core.initial_state(batch), state)
                t = torch.where(case.reset[i], 0, t)
            output, state = core.step(case.x[i], state, t)
            loss = loss + unit * own_loss(output, case.y[i])
            t = t + 1
            outputs.append(output.detach())
        ends = torch.zeros(batch, dtype=torch.bool)
        if end < steps and case.reset is not None:
            ends = case.reset[end]
        if end == steps:
            ends = torch.as_tensor(case.final).expand(batch)
        predicted = torch.where(ends[:, None], 0, estimator(state.detach())).detach()
        synthetic.append(estimator.scale * predicted)

        def back(factor: float, wanted: list[Tensor]) -> tuple[Tensor, ...]:
            seeds = [torch.ones_like(loss), unit * factor * predicted]
            return torch.autograd.grad(
                [loss, state], wanted, seeds, retain_graph=True, materialize_grads=True
            )

        targets.append(back(estimator.discount, [start])[0] / unit)
        core_gradient = [a + b for a, b in zip(core_gradient, back(estimator.scale, parameters))]
        sent.append(state.detach())

    rows, wanted = torch.cat(entered), torch.cat(targets)
    ended = torch.as_tensor(case.final).expand(batch)
    rows = torch.cat([rows, sent[-1][ended]])
    wanted = torch.cat([wanted, torch.zeros_like(sent[-1][ended])])
    error = 0.5 * (estimator(rows) - wanted).square().sum() / len(rows)
    return ByHand(
        torch.stack(outputs),
        torch.stack(sent),
        torch.stack(synthetic),
        torch.stack(targets),
        core_gradient,
        list(torch.autograd.grad(error, list(estimator.parameters()))),
        error.detach(),
    )


def full_bptt(core: Core, case: Case) -> tuple[list[Tensor], Tensor]:
    """Backpropagation through all of time, on ``core.step`` alone.

    Returns the gradient of each parameter, and [T + 1, B, S]: the gradient of all future loss at
    the state that each step starts from, then at the last state.
    """
    state = case.state.detach().requires_grad_()
    t = torch.as_tensor(case.t0).expand(len(state))
    states, loss = [state], 0.0
    for i, x in enumerate(case.x):
        if case.reset is not None:
            state = torch.where(case.reset[i, :, None], core.initial_state(len(state)), state)
            t = torch.where(case.reset[i], 0, t)
        output, state = core.step(x, state, t)
        # Its own tensor: what a state sends to the steps after it, without its step's own output.
        state = state.clone()
        states.append(state)
        loss = loss + own_loss(output, case.y[i])
        t = t + 1
    parameters = list(core.parameters())
    found = torch.autograd.grad(loss, [*parameters, *states], materialize_grads=True)
    return list(found[: len(parameters)]), torch.stack(found[len(parameters) :])


def gradients(module: nn.Module) -> list[Tensor]:
    """A copy of every parameter's gradient, zero where there is none."""
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for p in module.parameters()
    ]


def assert_close(actual, expected, tolerance: float = 1e-10, floor: float = 1.0) -> None:
    """Equal within ``tolerance`` of the expected norm, or of ``floor`` where that is larger.

    Lists are compared pair by pair.
    """
    if isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_close(one, other, tolerance, floor)
        return
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).norm()
    bound = tolerance * max(floor, float(expected.norm()))
    assert error <= bound, f"differs by {error:.3g}, more than {bound:.3g}"
