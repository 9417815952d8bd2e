"""LSTM: torch.nn.LSTM's numbers, names and initialisation (law 2). The oracle is nn.LSTM itself."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, gradients, seeds
from torch import nn

from dnirnn import LSTM, Truncated, ZeroGradient

sizes = dict(
    steps=st.integers(1, 12),
    batch=st.integers(1, 5),
    input_size=st.integers(1, 20),
    hidden_size=st.sampled_from([1, 3, 8, 17, 32, 33]),
    layers=st.integers(1, 3),
    seed=seeds,
)


def pair(input_size, hidden_size, layers, seed, dtype):
    torch.manual_seed(seed)
    oracle = nn.LSTM(input_size, hidden_size, layers).to(dtype)
    core = LSTM(input_size, hidden_size, layers).to(dtype)
    core.load_state_dict(oracle.state_dict())
    return oracle, core


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(**sizes)
def test_equals_torch(path, dtype, tolerance, steps, batch, input_size, hidden_size, layers, seed):
    oracle, core = pair(input_size, hidden_size, layers, seed, dtype)
    x = torch.randn(steps, batch, input_size, dtype=dtype, requires_grad=True)
    h, c = torch.randn(2, layers, batch, hidden_size, dtype=dtype).unbind()
    h, c = h.requires_grad_(), c.requires_grad_()
    by_output = torch.randn(steps, batch, hidden_size, dtype=dtype)
    by_state = torch.randn(batch, core.state_size, dtype=dtype)

    expected, ended = oracle(x, (h, c))
    expected_state = core.pack_state(*ended)
    loss = (expected * by_output).sum() + (expected_state * by_state).sum()
    wanted = torch.autograd.grad(loss, [x, h, c, *oracle.parameters()])

    output, state = core(x, core.pack_state(h, c))
    loss = (output * by_output).sum() + (state * by_state).sum()
    found = torch.autograd.grad(loss, [x, h, c, *core.parameters()])

    assert output.dtype == state.dtype == dtype
    assert_close(output, expected, tolerance)
    assert_close(state, expected_state, tolerance)
    assert_close(found, wanted, tolerance)


def test_state_dict_loads_strictly_both_ways():
    oracle, core = nn.LSTM(3, 5, 2), LSTM(3, 5, 2)
    assert list(core.state_dict()) == list(oracle.state_dict())
    assert [p.shape for p in core.parameters()] == [p.shape for p in oracle.parameters()]
    assert core.load_state_dict(oracle.state_dict(), strict=True)
    assert oracle.load_state_dict(core.state_dict(), strict=True)
    assert not list(core.buffers())


@given(seed=seeds, layers=st.integers(1, 3))
def test_initialisation_is_torchs(seed, layers):
    torch.manual_seed(seed)
    oracle = nn.LSTM(4, 6, layers)
    torch.manual_seed(seed)
    core = LSTM(4, 6, layers)
    assert all(torch.equal(a, b) for a, b in zip(core.parameters(), oracle.parameters()))


def test_training_follows_the_same_path(path):
    """Truncation at the call's length is nn.LSTM with a detached state: the same 10 updates."""
    oracle, core = pair(3, 7, 2, 0, torch.float64)
    truncated = Truncated(core, 5, ZeroGradient())
    optimizers = [torch.optim.Adam(m.parameters(), 1e-2) for m in (oracle, core)]
    ended = None
    state = core.initial_state(4)
    for _ in range(10):
        x, y = torch.randn(5, 4, 3).double(), torch.randn(5, 4, 7).double()
        expected, ended = oracle(x, ended)
        ended = tuple(part.detach() for part in ended)
        output, state, _ = truncated(x, state)
        for optimizer, out in zip(optimizers, (expected, output)):
            optimizer.zero_grad()
            (out - y).square().mean().backward()
            optimizer.step()
    assert_close(output, expected)
    assert_close(list(core.parameters()), list(oracle.parameters()), 1e-9)
    assert_close(state, core.pack_state(*ended))
    assert_close(gradients(core), gradients(oracle))


@given(layers=st.integers(1, 3), batch=st.integers(1, 4), hidden_size=st.integers(1, 5), seed=seeds)
def test_packing_is_h0_c0_h1_c1_and_back(layers, batch, hidden_size, seed):
    torch.manual_seed(seed)
    core = LSTM(2, hidden_size, layers)
    h, c = torch.randn(2, layers, batch, hidden_size)
    state = core.pack_state(h, c)
    expected = [part[layer] for layer in range(layers) for part in (h, c)]
    assert torch.equal(state, torch.cat(expected, 1))
    assert all(torch.equal(a, b) for a, b in zip(core.unpack_state(state), (h, c)))


def test_weights_are_the_parameters_in_torchs_order():
    core = LSTM(3, 4, 2)
    names = [name for name, _ in nn.LSTM(3, 4, 2).named_parameters()]
    assert all(a is core.get_parameter(name) for a, name in zip(core.weights, names))
    assert len(core.weights) == len(names)


def test_bfloat16_keeps_its_state_in_float32(path):
    oracle, core = pair(16, 32, 2, 0, torch.float32)
    x = torch.randn(9, 4, 16).bfloat16()
    core, oracle = core.bfloat16(), oracle.bfloat16().double()
    output, state = core(x, core.initial_state(4))
    expected, ended = oracle(x.double())
    assert output.dtype == torch.bfloat16 and state.dtype == torch.float32
    for found, wanted in ((output, expected), (state, core.pack_state(*ended))):
        assert (found.double() - wanted).norm() <= 2e-2 * wanted.norm()


def test_autocast_keeps_parameters_and_state_in_float32(path):
    oracle, core = pair(16, 32, 1, 0, torch.float32)
    x = torch.randn(9, 4, 16)
    expected, ended = oracle(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = core(x, core.initial_state(4))
    assert state.dtype == torch.float32
    for found, wanted in ((output, expected), (state, core.pack_state(*ended))):
        assert (found.float() - wanted).norm() <= 2e-2 * wanted.norm()
    output.float().sum().backward()
    expected.sum().backward()
    for found, wanted in zip(core.parameters(), oracle.parameters()):
        assert found.grad.dtype == torch.float32
        assert (found.grad - wanted.grad).norm() <= 2e-2 * wanted.grad.norm()


def test_moves_copies_and_repeats_itself(path):
    """deepcopy, double and a second call are the same function."""
    core = LSTM(3, 4, 2)
    x, state = torch.randn(5, 2, 3), torch.randn(2, core.state_size)
    once, again = core(x, state), copy.deepcopy(core)(x, state)
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    double = core.double()(x.double(), state.double())
    assert_close(once[0], double[0], 1e-6)


def test_prints_its_sizes():
    assert repr(LSTM(3, 4, 2)) == "LSTM(3, 4, num_layers=2)"
