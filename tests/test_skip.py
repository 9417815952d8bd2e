"""Skip: the paper's gate written out, the straight-through gradient, and what the steps cost."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Clock, Counter, assert_close, problems, seeds
from torch import nn

from dnirnn import GRU, LSTM, Deep, Skip, SyntheticGradient, Truncated, backward


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
