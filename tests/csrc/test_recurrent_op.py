"""The fused operator of plain recurrent layers and gated units against torch.nn.RNN and nn.GRU."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_calls import needs_op
from strategies import assert_close, seeds
from torch import nn

from dnirnn import GRU, RNN, FromTorch, ops

pytestmark = needs_op

KINDS = {"plain": (RNN, nn.RNN), "gated": (GRU, nn.GRU)}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def both(kind, steps, batch, inputs, hidden, layers=1, seed=0, dtype=torch.float64):
    """(outputs, state, gradients) of our core and of torch's module, of one loss."""
    ours, theirs = KINDS[kind]
    torch.manual_seed(seed)
    core = ours(inputs, hidden, layers).to(dtype)
    module = theirs(inputs, hidden, layers).to(dtype)
    module.load_state_dict(core.module.state_dict())
    x = torch.randn(steps, batch, inputs).to(dtype)
    # A state is float32 at least.
    state = torch.randn(batch, layers * hidden).to(torch.promote_types(dtype, torch.float32))
    grads = torch.randn(steps, batch, hidden).to(dtype), torch.randn_like(state)

    def run(core):
        leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
        output, ended = core(*leaves)
        wanted = [*leaves, *core.parameters()]
        return output, ended, torch.autograd.grad([output, ended], wanted, grads)

    return run(core), run(FromTorch(module))


def compare(kind, dtype, **sizes):
    (output, state, gradients), expected = both(kind, dtype=dtype, **sizes)
    floor = 1.0 if dtype == torch.bfloat16 else 1e-2
    assert output.dtype == dtype
    assert_close(output, expected[0], TOLERANCE[dtype], floor)
    assert_close(state, expected[1], TOLERANCE[dtype], floor)
    assert_close(list(gradients), list(expected[2]), TOLERANCE[dtype], floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    steps=st.integers(1, 5),
    batch=st.integers(1, 9),
    inputs=st.integers(1, 20),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 2),
    seed=seeds,
)
def test_equals_torch(kind, dtype, **sizes):
    compare(kind, dtype, **sizes)


BLOCKS = {
    "columns of every panel size": dict(steps=3, batch=13, inputs=70, hidden=150),
    "more rows than a tile and a long sequence": dict(steps=40, batch=7, inputs=3, hidden=17),
    "one wide row": dict(steps=2, batch=1, inputs=130, hidden=260),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", BLOCKS)
def test_equals_torch_where_blocks_are_many(kind, dtype, name):
    compare(kind, dtype, **BLOCKS[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_equals_torch_where_threads_are_many(kind, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(kind, torch.float64, steps=4, batch=33, inputs=50, hidden=100)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_equals_torch_on_every_vector_path(capability):
    program = (
        "import torch, test_recurrent_op as t\n"
        "for kind in t.KINDS:\n"
        "    t.compare(kind, torch.float32, steps=3, batch=7, inputs=20, hidden=37)\n"
        "    t.compare(kind, torch.float64, steps=3, batch=7, inputs=20, hidden=37)\n"
        "print('equal')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "equal", result.stderr


@pytest.mark.parametrize("gated", [False, True])
def test_opcheck_and_compile(gated):
    gates = 3 if gated else 1
    torch.manual_seed(0)
    shapes = [(4, 3, 5), (3, 6), (gates * 6, 5), (gates * 6, 6), (gates * 6,), (gates * 6,)]
    for wants in (True, False):
        tensors = [torch.randn(shape, requires_grad=wants) for shape in shapes]
        torch.library.opcheck(torch.ops.dnirnn.recurrent.default, (*tensors, gated))
    compiled = torch.compile(ops.recurrent, fullgraph=True, backend="aot_eager")
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    found, expected = compiled(*tensors, gated), ops.recurrent(*tensors, gated)
    assert_close(found, expected)
    assert_close(
        list(torch.autograd.grad(found.square().sum(), tensors)),
        list(torch.autograd.grad(expected.square().sum(), tensors)),
        1e-6,
    )


def test_strides_and_repetition_do_not_matter():
    core = GRU(6, 20)
    x = torch.randn(5, 4, 12)[:, :, ::2]
    state = torch.randn(4, 40)[:, ::2]
    one, other = core(x, state), core(x.contiguous(), state.contiguous())
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_second_derivative_is_refused():
    core = RNN(3, 4)
    x = torch.randn(2, 2, 3, requires_grad=True)
    output, _ = core(x, core.initial_state(2))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(output.square().sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x=torch.zeros(3, 5)), ValueError, "x must be"),
        (dict(h=torch.zeros(2, 7)), ValueError, "h must be"),
        (dict(w_ih=torch.zeros(6, 4)), ValueError, "w_ih must be"),
        (dict(b_hh=torch.zeros(5)), ValueError, "b_hh must be"),
        (dict(w_hh=torch.zeros(6, 6).double()), TypeError, "w_hh is Double, x is Float"),
    ],
)
def test_bad_input(change, error, words):
    given = dict(
        x=torch.zeros(3, 2, 5), h=torch.zeros(2, 6), w_ih=torch.zeros(6, 5),
        w_hh=torch.zeros(6, 6), b_ih=torch.zeros(6), b_hh=torch.zeros(6),
    )  # fmt: skip
    with pytest.raises(error, match=words):
        ops.recurrent(**{**given, **change}, gated=False)
