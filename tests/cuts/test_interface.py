"""backward: what is injected, what is taught, in which units, over one cut or several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    Counter,
    Fitting,
    Leaky,
    Problem,
    any_reset,
    any_t0,
    assert_close,
    by_hand,
    gradients,
    own_loss,
    problems,
)

from dnirnn import LSTM, Interface, SyntheticGradient, Truncated, ZeroGradient, backward

PROBLEM = Problem(steps=5, batch=3, truncation=2, input_size=2, hidden_size=3, seed=0)
LINEAR = Fitting((), 0.5, 0.5, 1)


@pytest.fixture
def setting(path):
    """(core, estimator, case): an LSTM and a linear estimator, all of it random."""
    core = LSTM(2, 3).double()
    return core, LINEAR.estimator(core), PROBLEM.case(core)


def call(core, estimator, case):
    output, _, interfaces = Truncated(core, 2, estimator)(case.x, case.state)
    return own_loss(output, case.y), interfaces


# scale multiplies what is injected; discount multiplies what enters the target.


@pytest.mark.parametrize(
    ("scale", "discount", "injected", "target"),
    [(1.0, 1.0, 10, 10), (0.5, 0.1, 5, 1), (0.5, 0.0, 5, 0), (0.0, 0.5, 0, 5), (0.0, 0.0, 0, 0)],
)
def test_scale_and_discount_are_two_things(scale, discount, injected, target):
    """4 steps of a Counter in chunks of 2, whose estimator says 10 everywhere."""
    core, estimator = Counter(), SyntheticGradient(1, (), scale, discount)
    torch.nn.init.constant_(estimator.layers[0].bias, 10.0)
    output, _, (cut,) = Truncated(core, 2, estimator)(torch.zeros(4, 1, 1), torch.zeros(1, 1))
    result = backward(output.sum(), [cut])
    assert cut.synthetic.flatten().tolist() == pytest.approx([injected, injected])
    assert core.increment.grad == pytest.approx((2 + 1) + (2 + 1) + 4 * injected)
    assert cut.probe.grad.flatten().tolist() == pytest.approx([2 + target, 2 + target])
    assert result["estimator_error"] == pytest.approx(0.5 * (10 - 2 - target) ** 2)
    assert estimator.layers[0].bias.grad == pytest.approx(10 - 2 - target)


@given(
    problem=problems(t0=any_t0, final=("yes", "some"), reset=any_reset),
    hidden=st.sampled_from([(), (4,)]),
    knobs=st.sampled_from([(0.0, 0.5), (1.0, 0.1), (0.1, 1.0), (0.5, 0.0)]),
)
def test_unequal_knobs_stop_at_a_sequences_end_too(path, problem, hidden, knobs):
    torch.manual_seed(problem.seed)
    core = LSTM(problem.input_size, problem.hidden_size).double()
    case, estimator = problem.case(core), Fitting(hidden, *knobs, 1).estimator(core)
    expected = by_hand(core, estimator, problem.truncation, case)
    truncated = Truncated(core, problem.truncation, estimator)
    output, _, (cut,) = truncated(case.x, case.state, case.t0, case.final, case.reset)
    backward(own_loss(output, case.y), [cut])
    assert_close(gradients(core), expected.core)
    assert_close(cut.probe.grad, expected.targets)
    assert_close(gradients(estimator), expected.estimator)


# Gradients are added, once, to what is there.


def test_adds_to_grad(setting):
    core, estimator, case = setting
    both = torch.nn.ModuleList([core, estimator])
    backward(*call(core, estimator, case))
    once = gradients(both)
    backward(*call(core, estimator, case))
    assert_close(gradients(both), [2 * g for g in once])


def test_the_graph_is_freed(setting):
    core, estimator, case = setting
    loss, interfaces = call(core, estimator, case)
    backward(loss, interfaces)
    with pytest.raises(RuntimeError, match="second time"):
        backward(loss, interfaces)


def test_what_the_loss_needs_beyond_the_core_gets_its_gradient(setting):
    """A readout and an encoder around the core: only the encoder hears of the future."""
    core, estimator, case = setting
    readout, encoder = torch.nn.Linear(3, 3).double(), torch.nn.Linear(2, 2).double()
    heard = []
    for each in (ZeroGradient(), estimator):
        readout.zero_grad(), encoder.zero_grad()
        output, _, interfaces = Truncated(core, 2, each)(encoder(case.x), case.state)
        backward(own_loss(readout(output), case.y), interfaces)
        heard.append((gradients(readout), gradients(encoder)))
    (plain_readout, plain_encoder), (readout_grad, encoder_grad) = heard
    assert_close(readout_grad, plain_readout)
    assert all((a - b).norm() > 1e-3 for a, b in zip(encoder_grad, plain_encoder))


# Several cuts at once.


def test_several_interfaces_are_the_sum_and_their_error_the_mean(setting):
    core, estimator, case = setting
    other = Fitting((4,), 0.3, 0.9, 2).estimator(core)
    both = torch.nn.ModuleList([core, estimator, other])
    errors, apart = [], [torch.zeros_like(p) for p in both.parameters()]
    for each in (estimator, other):
        both.zero_grad()
        errors.append(backward(*call(core, each, case))["estimator_error"])
        apart = [a + b for a, b in zip(apart, gradients(both))]
    both.zero_grad()
    losses, interfaces = zip(*(call(core, each, case) for each in (estimator, other)))
    result = backward(sum(losses), [cut for found in interfaces for cut in found])
    assert_close(gradients(both), apart)
    assert_close(result["estimator_error"], (errors[0] + errors[1]) / 2)


def test_a_cut_with_an_estimator_beside_one_without(setting):
    core, estimator, case = setting
    plain, cuts_of_none = call(core, ZeroGradient(), case)
    loss, cuts = call(core, estimator, case)
    error = backward(plain + loss, [*cuts_of_none, *cuts])["estimator_error"]
    core.zero_grad()
    assert_close(error, backward(*call(core, estimator, case))["estimator_error"])


def test_two_forwards_before_one_backward(setting):
    """Chunks of one sequence in two calls, one backward over both: the graph keeps its own."""
    core, estimator, case = setting
    truncated = Truncated(core, 2, estimator)
    both = torch.nn.ModuleList([core, estimator])
    apart = [torch.zeros_like(p) for p in both.parameters()]
    state = case.state
    for rows in (slice(0, 2), slice(2, 5)):
        both.zero_grad()
        output, state, cuts = truncated(case.x[rows], state)
        backward(own_loss(output, case.y[rows]), cuts)
        apart = [a + b for a, b in zip(apart, gradients(both))]
    both.zero_grad()
    head, state, first = truncated(case.x[:2], case.state)
    tail, state, second = truncated(case.x[2:], state)
    backward(own_loss(torch.cat([head, tail]), case.y), [*first, *second])
    assert_close(gradients(both), apart)


def test_an_interface_needs_no_time():
    """The same cut between two layers: the one below learns from what is predicted above it."""
    torch.manual_seed(0)
    below, above = torch.nn.Linear(3, 4).double(), torch.nn.Linear(4, 1).double()
    estimator = Fitting((), 1.0, 1.0, 3).estimator(Leaky(3, 4))
    x = torch.randn(5, 3, dtype=torch.float64)
    sent = below(x)[None]
    entered = sent.detach()
    probe = torch.zeros_like(entered, requires_grad=True)
    loss = above(entered + probe).square().sum()
    true = torch.autograd.grad(loss, probe, retain_graph=True)[0]
    synthetic = estimator(entered).detach()
    wanted = torch.autograd.grad(sent, list(below.parameters()), synthetic, retain_graph=True)
    result = backward(loss, [Interface(sent, synthetic, entered, probe, estimator)])
    assert_close(gradients(below), list(wanted))
    assert_close(probe.grad, true)
    expected = 0.5 * (estimator(entered) - true).square().sum() / 5
    assert_close(result["estimator_error"], expected)


# What it returns.


def test_returns_detached_scalars_and_nothing_without_an_estimator(setting):
    core, estimator, case = setting
    result = backward(*call(core, estimator, case))
    assert list(result) == ["estimator_error"]
    assert result["estimator_error"].shape == () and not result["estimator_error"].requires_grad
    assert backward(*call(core, ZeroGradient(), case)) == {}
    loss, _ = call(core, ZeroGradient(), case)
    assert backward(loss, []) == {}


def test_a_loss_of_shape_one_is_a_scalar(setting):
    core, estimator, case = setting
    loss, cuts = call(core, estimator, case)
    backward(loss[None], cuts)
    found = gradients(core)
    core.zero_grad()
    backward(*call(core, estimator, case))
    assert_close(gradients(core), found)
