"""check_core and check_estimator: ours pass, and each law is broken by something that they name."""

import pytest
import torch
from strategies import CORES, Clock, Leaky
from torch import nn

from dnirnn import LSTM, Core, LeastSquares, SyntheticGradient, ZeroGradient
from dnirnn.estimators import GradientEstimator
from dnirnn.testing import LawsBroken, check_core, check_estimator


@pytest.mark.parametrize("name", CORES)
def test_our_cores_keep_the_laws(name):
    torch.manual_seed(0)
    check_core(CORES[name][0](3, 4))


class Forgets(Leaky):
    """A faster forward that forgets t0 and resets."""

    def forward(self, x_TBI, state_BS, t0=0, reset=None):
        return super().forward(x_TBI, state_BS)


class Detaches(Leaky):
    def forward(self, x_TBI, state_BS, t0=0, reset=None):
        return super().forward(x_TBI, state_BS.detach(), t0, reset)


class Mixes(Leaky):
    def step(self, x_BI, state_BS, t):
        output, state = super().step(x_BI, state_BS, t)
        return output, state + state_BS.mean(0)


class Random(Leaky):
    def step(self, x_BI, state_BS, t):
        output, state = super().step(x_BI, state_BS, t)
        return output + torch.rand(()), state


class Doubles(Leaky):
    """A state in float64 whatever the core is in."""

    def step(self, x_BI, state_BS, t):
        output, state = super().step(x_BI, state_BS, t)
        return output, state.double()


class Squeezes(Leaky):
    def step(self, x_BI, state_BS, t):
        output, state = super().step(x_BI, state_BS, t)
        return output[:, :1], state


class Crashes(Leaky):
    def forward(self, x_TBI, state_BS, t0=0, reset=None):
        raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    ("kind", "law", "shape"),
    [
        (Forgets, "forward is the loop", "with resets"),
        (Detaches, "forward is the loop", "T=1"),
        (Mixes, "rows are apart", "B=2"),
        (Random, "same call same result", "T=1"),
        (Doubles, "single precision stays", "T=1"),
        (Squeezes, "shapes fit", "T=1"),
        (Crashes, "forward is the loop", "RuntimeError: no such luck"),
    ],
)
def test_a_broken_core_is_told_its_law_and_its_shape(kind, law, shape):
    with pytest.raises(LawsBroken) as caught:
        check_core(kind(3, 4))
    found = {one.law: str(one) for one in caught.value.broken}
    assert shape in found[law]
    assert kind.__name__ in str(caught.value)


def test_a_core_that_compiles_otherwise_is_named():
    class Untraceable(Leaky):
        def forward(self, x_TBI, state_BS, t0=0, reset=None):
            torch._dynamo.graph_break()
            return super().forward(x_TBI, state_BS, t0, reset)

    with pytest.raises(LawsBroken, match="compiled is eager"):
        check_core(Untraceable(2, 2), compile=True)


def test_the_core_is_left_as_it_was():
    core = Clock(3, 4).train()
    before = {name: value.clone() for name, value in core.state_dict().items()}
    check_core(core)
    assert core.training and all(torch.equal(core.state_dict()[n], before[n]) for n in before)
    assert all(p.grad is None and p.dtype == torch.float32 for p in core.parameters())


@pytest.mark.parametrize(
    ("estimator", "context"),
    [
        (ZeroGradient(), 0),
        (SyntheticGradient(4), 0),
        (SyntheticGradient(4, (5,), scale=0.5), 0),
        (SyntheticGradient(4, (5,), normalise=True), 0),
        (SyntheticGradient(4, (5,), context_size=3), 3),
        (LeastSquares(4, solve_every=1), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_our_estimators_keep_the_laws(estimator, context):
    check_estimator(estimator, 4, context_size=context)


class Linear(GradientEstimator):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, state):
        return self.map(state)

    def accumulate(self, entered, target, weight=None):
        weight = torch.ones(len(entered)) if weight is None else weight
        with torch.enable_grad():
            errors = 0.5 * (self(entered) - target).square().sum(-1) * weight
            error = errors.sum() / weight.sum().clamp(min=1)
            error.backward()
        return error.detach()


class Ignores(Linear):
    def accumulate(self, entered, target, weight=None):
        return super().accumulate(entered, target)


class Climbs(Linear):
    def accumulate(self, entered, target, weight=None):
        error = super().accumulate(entered, target, weight)
        self.map.bias.grad.neg_()
        self.map.weight.grad.neg_()
        return error


class Attached(Linear):
    def accumulate(self, entered, target, weight=None):
        return super().accumulate(entered, target, weight).requires_grad_()


class Averages(Linear):
    def forward(self, state):
        return self.map(state.mean(-2, keepdim=True).expand_as(state))


def test_a_plain_estimator_keeps_the_laws():
    check_estimator(Linear(), 4)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Ignores, "weightless rows are left out"),
        (Climbs, "a step down lowers the error"),
        (Attached, "accumulate returns an error and no more"),
        (Averages, "predictions are of each row"),
    ],
)
def test_a_broken_estimator_is_told_its_law(kind, law):
    with pytest.raises(LawsBroken, match=law):
        check_estimator(kind(), 4)


def test_what_is_no_core_and_no_estimator_is_refused():
    with pytest.raises(TypeError, match="core must be a dnirnn.Core; got LSTM"):
        check_core(nn.LSTM(2, 3))
    with pytest.raises(TypeError, match="estimator must be a dnirnn.GradientEstimator; got Linear"):
        check_estimator(nn.Linear(2, 2), 2)
    assert isinstance(LSTM(2, 3), Core)
