"""Symbols in the place of inputs: the operator on a table's rows is the operator on what is looked up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_calls import CELLS, LARGE, Call, calls, make_call, needs_op
from strategies import assert_close
from torch.nn import functional as F

from dnirnn import ops

pytestmark = needs_op

COUNT = 7
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}
SIZES = {
    "one row, one step": dict(steps=1, batch=1, inputs=3, hidden_size=17),
    "one row": dict(steps=9, batch=1, inputs=3, hidden_size=16, truncation=4),
    "few rows, two layers": dict(steps=6, batch=4, inputs=5, hidden_size=33, layers=2, truncation=4),
    "rows": dict(steps=11, batch=17, inputs=8, hidden_size=40, truncation=4, probe="chunks"),
    "all": dict(
        steps=7, batch=9, inputs=4, hidden_size=24, layers=2, truncation=3, probe="steps", reset=True,
        estimator=(5,),
    ),
    "gated units": dict(
        steps=9, batch=9, inputs=4, hidden_size=24, layers=2, truncation=4, reset=True, cell="GRU"
    ),
    "one row of gated units": dict(steps=2, batch=1, inputs=4, hidden_size=20, cell="GRU"),
    "a plain layer": dict(steps=9, batch=17, inputs=4, hidden_size=20, truncation=4, cell="RNN_TANH"),
    "groups of steps": dict(steps=40, batch=64, inputs=4, hidden_size=20, truncation=40, estimator=()),
}  # fmt: skip


def both(call: Call, dtype: torch.dtype):
    """Outputs and gradients by what is looked up, and by symbols; of the embedding first."""
    steps, batch, inputs = call.x.shape
    generator = torch.Generator().manual_seed(steps)
    embedding = torch.randn(COUNT, inputs, generator=generator).to(dtype).requires_grad_()
    symbols = torch.randint(COUNT, (steps, batch), generator=generator)
    leaves = [embedding, *call.wanted[1:]]

    def run(x, weights):
        output, sent, synthetic = ops.tbptt(
            x, call.state, call.probe, weights, *call.arguments[4:]
        )
        assert output.dtype == dtype
        gradients = torch.autograd.grad([output, sent], leaves, [call.by_output, call.by_sent])
        return [output, sent, synthetic, *gradients]

    table = F.linear(embedding, call.weights[0])
    return (
        run(F.embedding(symbols, embedding), call.weights),
        run(symbols, [table, *call.weights[1:]]),
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", (SIZES | LARGE).values(), ids=SIZES | LARGE)
def test_equals_what_is_looked_up(sizes, dtype):
    dense, by_symbols = both(make_call(**sizes, dtype=dtype), dtype)
    for one, other in zip(by_symbols, dense):
        assert_close(one, other, TOLERANCE[dtype], 1e-2)


@given(**calls, cell=st.sampled_from(list(CELLS)))
def test_equals_what_is_looked_up_whatever_the_sizes(**drawn):
    dense, by_symbols = both(make_call(**drawn), torch.float64)
    for one, other in zip(by_symbols, dense):
        assert_close(one, other, TOLERANCE[torch.float64], 1e-2)


def symbol_call(dtype=torch.float32) -> Call:
    call = make_call(4, 3, 5, 6, dtype=dtype)
    table = torch.randn(COUNT, 24, dtype=dtype)
    return call._replace(x=torch.randint(COUNT, (4, 3)), weights=[table, *call.weights[1:]])


def test_float32_weights_beside_a_table_of_16_bits():
    call = symbol_call(torch.bfloat16)
    wide = [call.weights[0], *(w.detach().float().requires_grad_() for w in call.weights[1:])]
    output, _, _ = ops.tbptt(call.x, call.state, None, wide, *call.arguments[4:])
    narrow, _, _ = ops.tbptt(*call.arguments)
    assert output.dtype == torch.bfloat16
    assert_close(output, narrow, 2e-2)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(output.sum(), wide[1:]))


def test_the_same_call_twice_is_equal_bit_for_bit():
    call = make_call(**SIZES["groups of steps"], dtype=torch.float32)
    first, second = both(call, torch.float32)[1], both(call, torch.float32)[1]
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("symbol", [-1, COUNT, 2**40])
def test_a_symbol_that_is_none_is_named(symbol):
    call = symbol_call()
    call.x[2, 1] = symbol
    with pytest.raises(IndexError, match=rf"symbols from 0 to {COUNT - 1}; got {symbol}"):
        ops.tbptt(*call.arguments)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(x=torch.zeros(4, 3, 1, dtype=torch.int64)), ValueError, "x must be"),
        (dict(x=torch.zeros(4, dtype=torch.int64)), ValueError, "x must be"),
        (dict(x=torch.zeros(4, 3, dtype=torch.int32)), (TypeError, ValueError), "x must be|x is"),
        (dict(table=torch.zeros(COUNT, 23)), ValueError, r"table of symbols, must be \[V, 24\]"),
        (dict(table=torch.zeros(COUNT, 24).double()), TypeError, "they must have one dtype"),
        (dict(table=torch.zeros(COUNT)), ValueError, "table of symbols"),
    ],
    ids=str,
)
def test_bad_input_is_named(change, error, match):
    call = symbol_call()
    weights = [change.get("table", call.weights[0]), *call.weights[1:]]
    arguments = call._replace(x=change.get("x", call.x), weights=weights).arguments
    with pytest.raises(error, match=match):
        ops.tbptt(*arguments)


def test_opcheck():
    call = symbol_call()
    for tensor in (call.state, *call.weights):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.dnirnn.tbptt.default, call.arguments)


@pytest.mark.cuda
@pytest.mark.skipif("cuda" not in ops.DEVICES, reason="no operator is built for a GPU here")
def test_a_gpu_refuses_symbols():
    call = symbol_call()
    with pytest.raises(TypeError, match="x must be float32"):
        ops.tbptt(call.x.cuda(), call.state.cuda(), None, [w.cuda() for w in call.weights],
                       *call.arguments[4:])  # fmt: skip

