"""Skip: the paper's gate written out, the straight-through gradient, and what the steps cost."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    Clock,
    Counter,
    assert_close,
    fittings,
    gradients,
    own_loss,
    problems,
    seeds,
)
from torch import nn

from dnirnn import (
    GRU,
    LSTM,
    Deep,
    Skip,
    SyntheticGradient,
    TrueGradient,
    Truncated,
    ZeroGradient,
    backward,
)
from dnirnn.core import AUXILIARY
from dnirnn.true_gradient import true_gradients


def rounded(soft):
    """0 or 1 forward, the identity backward."""
    hard = torch.tensor([[1.0 if value > 0.5 else 0.0] for value in soft[:, 0].tolist()])
    return hard.double() + soft - soft.detach()


def paper(skip, s, held, soft, x):
    """Section 3: (outputs, u, the last s, held, soft)."""
    outputs, gates = [], []
    for t, x_t in enumerate(x):
        u = rounded(soft)
        output, new = skip.core.step(x_t, s, t)
        s = u * new + (1 - u) * s
        held = u * output + (1 - u) * held
        grown = torch.sigmoid(s @ skip.gate.weight.T + skip.gate.bias)
        soft = u * grown + (1 - u) * (soft + torch.minimum(grown, 1 - soft))
        outputs.append(held)
        gates.append(u[:, 0])
    return torch.stack(outputs), torch.stack(gates), s, held, soft


@pytest.mark.parametrize("cell", [LSTM, GRU, Clock])
@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 3),
    size=st.integers(1, 4),
    bias=st.sampled_from([-2.0, -0.5, 0.0, 1.0]),
    begun=st.booleans(),
    seed=seeds,
)
def test_equals_the_papers_loop(cell, steps, batch, size, bias, begun, seed):
    torch.manual_seed(seed)
    skip = Skip(cell(2, size), bias).double()
    x = torch.randn(steps, batch, 2, dtype=torch.float64, requires_grad=True)
    parts = list(skip.unpack_state(skip.initial_state(batch)))
    if begun:
        parts[:2] = (torch.randn_like(part) for part in parts[:2])
        parts[2] = torch.rand_like(parts[2])
    parts = [part.clone().requires_grad_() for part in parts]
    outputs, gates, *end = paper(skip, *parts, x)
    with skip.recording() as updates:
        output, state = skip(x, torch.cat(parts, 1))
    u = torch.stack(updates)
    assert_close(u, gates)
    assert_close(output, outputs)
    assert_close(list(skip.unpack_state(state)), end)

    y, cost = torch.randn_like(outputs), torch.randn_like(gates)
    wanted = [x, *parts, *skip.parameters()]
    options = dict(materialize_grads=True)
    loss = (outputs * y).sum() + (gates * cost).sum() + torch.cat(end, 1).square().sum()
    expected = torch.autograd.grad(loss, wanted, **options)
    loss = (output * y).sum() + (u * cost).sum() + state.square().sum()
    assert_close(torch.autograd.grad(loss, wanted, **options), expected)


def counter(bias: float) -> Skip:
    """Says how often it was updated; du is sigmoid(bias) at every step."""
    skip = Skip(Counter(), bias)
    nn.init.zeros_(skip.gate.weight)
    return skip


@pytest.mark.parametrize(
    ("increment", "expected"),
    [
        (0.52, [1, 1, 1, 1, 1, 1, 1]),
        (0.48, [1, 0, 1, 0, 1, 0, 1]),
        (0.2, [1, 0, 0, 1, 0, 0, 1]),
        (0.01, [1, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_updates_come_when_the_increments_are_over_a_half(increment, expected):
    skip = counter(float(torch.logit(torch.tensor(increment))))
    with skip.recording() as updates:
        output, state = skip(torch.zeros(7, 2, 1), skip.initial_state(2))
    assert torch.stack(updates).T.tolist() == [expected] * 2
    assert output[:, 0, 0].tolist() == torch.tensor(expected).cumsum(0).tolist()
    assert state[:, 0].tolist() == [sum(expected)] * 2


def test_a_fresh_one_updates_nearly_always():
    skip = Skip(LSTM(3, 8))
    with skip.recording() as updates:
        skip(torch.randn(50, 4, 3), skip.initial_state(4))
    assert torch.stack(updates).mean() > 0.9


def test_u_never_passes_one():
    """What grew past the half in a state from elsewhere is capped, as the paper's minimum does."""
    skip = counter(-0.2)
    state = torch.tensor([[0.0, 0.0, 0.4]])
    _, state = skip(torch.zeros(1, 1, 1), state)
    assert_close(skip.unpack_state(state)[2], torch.tensor([[0.4 + 0.450166]]), 1e-5)
    skip = counter(3.0)
    _, state = skip(torch.zeros(1, 1, 1), torch.tensor([[0.0, 0.0, 0.4]]))
    assert skip.unpack_state(state)[2].item() == 1


@given(problem=problems(t0=("zero", "int"), reset=("none", "anywhere")))
def test_recording_gathers_every_step_of_a_truncated_run(problem):
    """Inside another core too, whatever the chunks; and a cost reaches the gate of each."""
    torch.manual_seed(problem.seed)
    skip = Skip(GRU(3, 2), bias=-0.5)
    core = Deep([LSTM(problem.input_size, 3), skip]).double()
    case = problem.case(core)
    truncated = Truncated(core, problem.truncation, SyntheticGradient(core.state_size).double())
    with skip.recording() as updates:
        output, _, cuts = truncated(case.x, case.state, case.t0, reset=case.reset)
    u = torch.stack(updates)
    assert u.shape == output.shape[:2] and ((u == 0) | (u == 1)).all()
    backward(u.sum(), cuts)
    if problem.truncation == 1:
        expected = torch.ones_like(u) if case.reset is None else 1.0 - case.reset.double()
        assert torch.equal(cuts[0].probe.grad[..., -1], expected), "u_1 counts as u~_1"
    truncated(case.x, case.state)
    assert len(updates) == problem.steps, "what is run after it is not recorded"
    copy.deepcopy(truncated)


@given(
    problem=problems(t0=("zero", "int"), final=("no", "yes"), reset=("none", "anywhere")),
    fitting=fittings,
    cost=st.sampled_from([0.3, 2.0]),
    unit=st.sampled_from([1.0, 0.25]),
)
def test_a_cost_is_a_part_of_the_loss(problem, fitting, cost, unit):
    """As if written into it, for the core and for its estimator, inside another core too."""
    found = []
    for price in (cost, 0.0):
        torch.manual_seed(problem.seed)
        skip = Skip(GRU(3, 2), bias=-0.5, cost=price)
        core = Deep([LSTM(problem.input_size, 3), skip]).double()
        case, estimator = problem.case(core), fitting.estimator(core)
        truncated = Truncated(core, problem.truncation, estimator)
        with skip.recording() as updates:
            output, _, cuts = truncated(case.x, case.state, case.t0, case.final, case.reset)
        loss = own_loss(output, case.y)
        if price:
            assert_close(cuts[0].auxiliary_loss, cost * torch.stack(updates).sum())
        else:
            assert cuts[0].auxiliary_loss is None
            loss = loss + cost * torch.stack(updates).sum()
        error = backward(unit * loss, cuts, unit)["estimator_error"]
        found.append([*gradients(truncated), cuts[0].probe.grad, error])
    assert_close(*found)


def test_the_true_gradient_counts_the_cost():
    skip = Skip(GRU(2, 3), bias=-0.5, cost=0.7).double()
    truncated = Truncated(skip, 2, TrueGradient())
    x, state = torch.randn(6, 2, 2).double(), skip.initial_state(2)
    with skip.recording() as updates:
        output, _, (cut,) = truncated(x, state)
    loss, price = output.square().sum(), 0.7 * torch.stack(updates).sum()
    expected = true_gradients(loss + price, cut._replace(auxiliary_loss=None))
    assert_close(true_gradients(loss, cut), expected)
    assert not torch.equal(expected, true_gradients(loss, cut._replace(auxiliary_loss=None)))


def test_only_a_truncated_call_is_charged():
    skip = Skip(GRU(2, 3), cost=1.0)
    truncated, x = Truncated(skip, 2, SyntheticGradient(skip.state_size)), torch.randn(4, 2, 2)
    skip(x, skip.initial_state(2))
    assert AUXILIARY.get() is None, "nothing is gathered that nobody takes"
    assert truncated(x, skip.initial_state(2))[2][0].auxiliary_loss > 0 and AUXILIARY.get() is None
    with pytest.raises(ValueError, match="state must be"):
        truncated(x, skip.initial_state(3))
    assert AUXILIARY.get() is None


def test_a_cost_teaches_it_to_skip():
    """Where nothing else is asked, down to the update that every sequence starts with."""
    skip = Skip(LSTM(1, 4), cost=1.0)
    truncated, x = Truncated(skip, 4, ZeroGradient()), torch.randn(8, 16, 1)
    optimizer, shares = torch.optim.Adam(skip.parameters(), 0.3), []
    for _ in range(30):
        with skip.recording() as updates:
            output, _, cuts = truncated(x, skip.initial_state(16), final=True)
        shares.append(float(torch.stack(updates).detach().mean()))
        optimizer.zero_grad()
        backward(0 * output.sum(), cuts)
        optimizer.step()
    assert shares[0] > 0.9 and shares[-1] == 1 / 8


@pytest.mark.parametrize("cost", [-0.1, float("inf"), float("nan")])
def test_what_is_no_cost_is_refused(cost):
    with pytest.raises(ValueError, match="cost must be finite and not negative; got"):
        Skip(LSTM(2, 3), cost=cost)


def test_a_step_that_no_row_updates_costs_nothing_without_gradients():
    skip = counter(float(torch.logit(torch.tensor(0.2))))
    calls = []
    inner = skip.core.step
    skip.core.step = lambda *arguments: calls.append(1) or inner(*arguments)
    x, state = torch.zeros(7, 2, 1), skip.initial_state(2)
    expected = skip(x, state)
    assert len(calls) == 7, "the gradient of u asks what an update would have done"
    calls.clear()
    with torch.no_grad():
        found = skip(x, state)
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_sequence_starts_with_an_update():
    """After a reset too: u~ starts at 1."""
    skip = counter(-5.0)
    reset = torch.zeros(5, 2, dtype=torch.bool)
    reset[3, 1] = True
    with skip.recording() as updates:
        skip(torch.zeros(5, 2, 1), skip.initial_state(2), 0, reset)
    assert torch.stack(updates).T.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 1, 0]]


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_keeps_a_float32_state(autocast):
    skip = Skip(LSTM(3, 4), bias=-0.5)
    skip = skip if autocast else skip.bfloat16()
    x = torch.randn(5, 2, 3, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, state = skip(x, skip.initial_state(2))
    assert state.dtype == torch.float32 and output.dtype == x.dtype
