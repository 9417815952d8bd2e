"""Cores whose steps are chains of LSTM cells, on the operator: compiled, in every dtype, against their loop."""

import pytest
import torch
from strategies import assert_close

from dnirnn import HMLSTM, LSTM, FastSlow, NormLSTM, Skip, ops
from dnirnn.cells.chain import READS_X, Link, lstm_cells

pytestmark = pytest.mark.skipif(
    not ops.built, reason="the fused operators are not built here (dnirnn.ops.built is False)"
)

D = torch.float64
CORES = {
    "fast-slow": lambda: FastSlow(3, 24, 20, 3, zoneout_h=0.1, zoneout_c=0.4, dropout=0.2),
    "fast-slow-plain": lambda: FastSlow(3, 24, 20, layer_norm=False),
    "skip": lambda: Skip(LSTM(3, 24), bias=-0.3, cost=0.1),
    "hm-lstm": lambda: HMLSTM(3, 24),
    "hm-lstm-norm": lambda: HMLSTM(3, 24, 2, layer_norm=True),
}


@pytest.mark.parametrize("name", sorted(CORES.keys() - {"skip"}))
def test_cores_compile_whole(name):
    """Skip's record of updates does not."""
    torch._dynamo.reset()
    core = CORES[name]()
    x, state = torch.randn(5, 2, 3), core.initial_state(2)
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    results = []
    for one in (core, compiled):
        output, ended = one(x, state, 0)
        loss = output.square().sum() + ended.sum()
        results.append([output, ended, *torch.autograd.grad(loss, list(core.parameters()))])
    assert_close(results[1], results[0], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CORES)
def test_cores_in_float32_and_under_autocast_are_their_loop_in_float64(name, dtype):
    """Short enough that rounding turns no u and no detector."""
    core = CORES[name]()
    x, state = torch.randn(4, 3, 3), core.initial_state(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output, ended = core(x, state, 2)
    assert ended.dtype == torch.float32
    core = core.double()
    expected, end = core.loop(x.double(), state.double(), 2, None)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 3e-2}[dtype]
    assert_close(output.double(), expected, tolerance)
    assert_close(ended.double(), end, tolerance)


def test_a_step_that_no_row_updates_is_not_computed_without_gradients():
    """Weights that would be seen, were they multiplied."""
    skip = Skip(LSTM(2, 5), bias=-3.0)
    x, state = torch.randn(6, 3, 2), skip.initial_state(3)
    state[:, -1] = 0.2
    for parameter in skip.core.parameters():
        parameter.data.fill_(float("nan"))
    with torch.no_grad():
        output, ended = skip(x, state)
    assert not output.any() and not ended[:, :-1].any() and (ended[:, -1] > 0.2).all()


def test_norm_lstm_and_a_chain_of_one_are_one_cell():
    """So that what FastSlow gives of its cells' options is what NormLSTM gives gated_lstm."""
    core = NormLSTM(3, 5, zoneout_h=0.2, zoneout_c=0.4).double()
    x, state = torch.randn(6, 2, 3, dtype=D), torch.randn(2, 10, dtype=D)
    bias = core.bias_ih_l0 + core.bias_hh_l0
    weights = [core.weight_hh_l0, core.weight_ih_l0, bias]
    one = Link(0, [READS_X], weights, **core.options(state, 6, 2, None))
    output, end = lstm_cells(x, state, None, [one], 6)
    assert_close([output, end[0]], list(core(x, state, 2)))
