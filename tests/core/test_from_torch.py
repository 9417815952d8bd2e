"""FromTorch: an nn.LSTM, nn.GRU or nn.RNN is a Core, with its own parameters and numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds
from torch import nn

from dnirnn import LSTM, FromTorch, Truncated, ZeroGradient

MODULES = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "rnn-relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


@pytest.mark.parametrize("kind", MODULES)
@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    seed=seeds,
)
def test_equals_the_module(kind, steps, batch, layers, bias, seed):
    torch.manual_seed(seed)
    module = MODULES[kind](3, 4, layers, bias=bias).double()
    core = FromTorch(module)
    parts = 2 if kind == "lstm" else 1
    began = torch.randn(parts, layers, batch, 4, dtype=torch.float64)
    state = torch.cat([began[p, layer] for layer in range(layers) for p in range(parts)], 1)
    x = torch.randn(steps, batch, 3, dtype=torch.float64)
    expected, ended = module(x, tuple(began) if parts == 2 else began[0])
    ended = ended if parts == 2 else (ended,)
    output, last = core(x, state)
    assert torch.equal(output, expected)
    assert torch.equal(
        last, torch.cat([ended[p][layer] for layer in range(layers) for p in range(parts)], 1)
    )
    assert (core.input_size, core.output_size, core.state_size) == (3, 4, parts * layers * 4)


def test_parameters_are_the_modules_own():
    module = nn.GRU(3, 4, 2)
    core = FromTorch(module)
    assert {id(p) for p in core.parameters()} == {id(p) for p in module.parameters()}
    output, _, _ = Truncated(core, 2, ZeroGradient())(torch.randn(5, 2, 3), core.initial_state(2))
    output.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_its_state_is_dnirnn_lstms(path):
    """The same layout, so that either can go on from the other's state."""
    module = nn.LSTM(3, 4, 2).double()
    core, other = FromTorch(module), LSTM(3, 4, 2).double()
    other.load_state_dict(module.state_dict())
    x, state = torch.randn(5, 2, 3).double(), torch.randn(2, 16).double()
    for found, expected in zip(core(x, state), other(x, state)):
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(bidirectional=True), "bidirectional=True"),
        (dict(batch_first=True), "batch_first=True"),
        (dict(proj_size=2), "proj_size=2"),
        (dict(dropout=0.5, num_layers=2), "dropout=0.5"),
    ],
)
def test_refuses_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        FromTorch(nn.LSTM(3, 4, **options))


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.LSTMCell(3, 4), LSTM(3, 4)])
def test_refuses_other_modules(module):
    with pytest.raises(TypeError, match=f"module must be .*got {type(module).__name__}"):
        FromTorch(module)
