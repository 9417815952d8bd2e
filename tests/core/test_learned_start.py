"""A learned initial state is one method: resets go back to it, and its gradient is exact."""

import pytest
import torch
from conftest import take
from hypothesis import given
from strategies import CORES, Fitting, assert_close, own_loss, problems
from torch import nn

from dnirnn import LSTM, Deep, SyntheticGradient, Truncated, ZeroGradient, backward


def learned(core):
    """The same core, from a state that is a parameter: a subclass of its class."""

    class Learned(type(core)):
        def initial_state(self, batch_size):
            return self.start.expand(batch_size, -1)

    core.__class__ = Learned
    core.start = nn.Parameter(0.5 * torch.randn(core.state_size).double())
    return core


@pytest.fixture(params=[name for name in CORES if "skip" not in name])
def build(request, monkeypatch):
    make, on = CORES[request.param]
    if on is not None:
        take(on, monkeypatch)

    def seeded(input_size, hidden_size, seed):
        torch.manual_seed(seed)
        return learned(make(input_size, hidden_size).double())

    return seeded


@given(problem=problems(reset=("none", "anywhere", "at cuts")))
def test_uncut_its_gradient_is_backpropagations(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)._replace(state=core.initial_state(problem.batch))
    state = core.initial_state(problem.batch)
    outputs, t = [], torch.zeros(problem.batch, dtype=torch.int64)
    for i, x in enumerate(case.x):
        if case.reset is not None:
            state = torch.where(case.reset[i, :, None], core.initial_state(problem.batch), state)
            t = torch.where(case.reset[i], 0, t)
        output, state = core.step(x, state, t)
        outputs.append(output)
        t = t + 1
    parameters = list(core.parameters())
    loss = own_loss(torch.stack(outputs), case.y)
    expected = torch.autograd.grad(loss, parameters, materialize_grads=True)
    whole = Truncated(core, problem.steps, ZeroGradient())
    output, _, cuts = whole(case.x, core.initial_state(problem.batch), 0, reset=case.reset)
    found = torch.autograd.grad(own_loss(output, case.y), parameters, materialize_grads=True)
    assert_close(output, torch.stack(outputs))
    assert_close(found, expected)


@pytest.mark.parametrize("knobs", [{}, dict(dense=True), dict(trace_decay=0.5), dict(discount=0.7)])
@pytest.mark.parametrize("make", [lambda: LSTM(2, 3, 2), lambda: Deep([learned(LSTM(2, 3)), LSTM(3, 3)])])
def test_what_the_first_chunk_sends_back_reaches_the_start(path, make, knobs):
    """The state given is the parameter: its gradient is the injected loss's, as the probe's."""
    torch.manual_seed(0)
    core = make().double()
    x, state = torch.randn(5, 3, 2).double(), torch.randn(3, core.state_size).double()
    state.requires_grad_()
    estimator = SyntheticGradient(core.state_size, (), 0.5, **{"discount": 0.5, **knobs}).double()
    nn.init.normal_(estimator.layers[0].weight)
    output, _, (cut,) = Truncated(core, 2, estimator)(x, state)
    loss = output.square().sum()
    seeds = [torch.ones_like(loss), cut.synthetic]
    expected = torch.autograd.grad([loss, cut.end], state, seeds, retain_graph=True)[0]
    boot = estimator.bootstrap(cut)
    backward(loss, [cut], reduction="sum")
    assert_close(state.grad, expected)
    assert state.grad.any() and not cut.start.requires_grad
    if boot is None:
        assert_close(state.grad, cut.probe.grad[0])


def test_a_reset_row_teaches_the_start(path):
    """Only the rows that are reset send it anything, where the state given is another."""
    core = learned(LSTM(2, 3).double())
    x, state = torch.randn(5, 2, 2).double(), torch.randn(2, 6).double()
    reset = torch.zeros(5, 2, dtype=torch.bool)
    for estimator in (ZeroGradient(), Fitting((), 0.5, 0.5, 1).estimator(core)):
        for row in (None, 1):
            core.zero_grad()
            if row is not None:
                reset[3, row] = True
            output, _, cuts = Truncated(core, 2, estimator)(x, state, reset=reset)
            backward(output.square().sum(), cuts, reduction="sum")
            assert (core.start.grad is not None and bool(core.start.grad.any())) == reset.any()
        reset.zero_()
