"""MTRNN: the paper's equation unit by unit, and what its time constants are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds
from torch import nn

from dnirnn import MTRNN


@given(
    taus=st.lists(st.floats(1, 100), min_size=1, max_size=3),
    size=st.integers(1, 3),
    steps=st.integers(1, 5),
    seed=seeds,
)
def test_each_unit_leaks_at_its_groups_rate(taus, size, steps, seed):
    torch.manual_seed(seed)
    core = MTRNN(2, size * len(taus), taus, dtype=torch.float64)
    x = torch.randn(steps, 1, 2).double()
    u = torch.randn(1, core.state_size).double()
    output, state = core(x, u)
    u = u[0].tolist()
    for t in range(steps):
        y = [math.tanh(value) for value in u]
        for i in range(core.hidden_size):
            drive = float(core.weight_ih[i] @ x[t, 0] + core.bias[i])
            drive += sum(float(core.weight_hh[i, j]) * y[j] for j in range(core.hidden_size))
            tau = taus[i // size]
            u[i] = (1 - 1 / tau) * u[i] + drive / tau
        assert_close(output[t, 0], torch.tensor(u, dtype=torch.float64).tanh())
    assert_close(state[0], torch.tensor(u, dtype=torch.float64))


def test_with_time_constants_of_1_it_is_a_plain_network():
    core, plain = MTRNN(3, 4, (1, 1)).double(), nn.RNN(3, 4).double()
    with torch.no_grad():
        plain.weight_ih_l0.copy_(core.weight_ih)
        plain.weight_hh_l0.copy_(core.weight_hh)
        plain.bias_ih_l0.copy_(core.bias)
        plain.bias_hh_l0.zero_()
    x, u = torch.randn(5, 2, 3).double(), torch.randn(2, 4).double()
    output, state = core(x, u)
    assert_close(output, plain(x, u.tanh()[None])[0])
    assert_close(state.tanh(), output[-1])


def test_a_unit_that_is_sent_nothing_forgets_by_e_in_its_time_constant():
    core = MTRNN(1, 1, (1000,)).double()
    for parameter in core.parameters():
        nn.init.zeros_(parameter)
    _, state = core(torch.zeros(1000, 1, 1).double(), torch.ones(1, 1).double())
    assert float(state.detach()) == pytest.approx(math.exp(-1), rel=1e-3)


@pytest.mark.parametrize(
    "value, error",
    [(3, TypeError), ("ab", TypeError), (None, TypeError), ((), ValueError), ((0.5,), ValueError),
     ((math.inf,), ValueError), ((True,), ValueError), (("2",), ValueError), ((1, 2, 3), ValueError)],
)  # fmt: skip
def test_wrong_time_constants_are_named(value, error):
    with pytest.raises(error, match="time_constants"):
        MTRNN(2, 4, value)
