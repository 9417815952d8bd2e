"""GRU and RNN, on the operator that all cells share, against torch.nn.GRU and torch.nn.RNN."""

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

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    FromTorch,
    SyntheticGradient,
    Truncated,
    ZeroGradient,
    backward,
)

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


@pytest.mark.parametrize("kind", KINDS)
@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 5),
    hidden=st.integers(1, 20),
    layers=st.integers(1, 2),
    truncation=st.integers(1, 5),
    resets=st.booleans(),
    options=st.sampled_from([{}, dict(dense=True), dict(trace_decay=0.5)]),
    seed=seeds,
)
def test_truncated_equals_that_of_torchs_module(
    kind, steps, batch, hidden, layers, truncation, resets, options, seed
):
    """All chunks in one call, resets in it: outputs, state, what estimators are taught, gradients."""
    ours, theirs = KINDS[kind]
    torch.manual_seed(seed)
    core = ours(3, hidden, layers).double()
    module = theirs(3, hidden, layers).double()
    module.load_state_dict(core.module.state_dict())
    size = layers * hidden
    x, reset = torch.randn(steps, batch, 3).double(), torch.rand(steps, batch) < 0.2
    state, by = torch.randn(batch, size).double(), torch.randn(steps, batch, hidden).double()
    weights = torch.randn(size, size).double()

    def run(core):
        estimator = SyntheticGradient(size, **options).double()
        with torch.no_grad():
            estimator.layers[0].weight.copy_(weights)
        truncated = Truncated(core, truncation, estimator)
        leaf = x.clone().requires_grad_()
        output, ended, interface = truncated(leaf, state, reset=reset if resets else None)
        error = backward((output * by).sum(), interface)
        wanted = [leaf, *core.parameters(), *estimator.parameters()]
        return output, ended, list(error.values()), [tensor.grad for tensor in wanted]

    for found, expected in zip(run(core), run(FromTorch(module))):
        assert_close(found, expected, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_and_compile(kind):
    core = KINDS[kind][0](5, 6, 2)
    torch.manual_seed(0)
    x, state, probe = torch.randn(7, 3, 5), torch.randn(3, 12), torch.randn(3, 3, 12)
    for wants in (True, False):
        given = [t.detach().requires_grad_(wants) for t in (x, state, probe, *core.weights)]
        torch.library.opcheck(
            torch.ops.dnirnn.tbptt.default, (*given[:3], given[3:], [], 3, 1.0, None)
        )
    torch._dynamo.reset()
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(x, state), core(x, state)):
        assert_close(found, expected)
        assert_close(
            list(torch.autograd.grad(found.square().sum(), list(core.parameters()), retain_graph=True)),
            list(torch.autograd.grad(expected.square().sum(), list(core.parameters()), retain_graph=True)),
            1e-6,
        )  # fmt: skip


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


@pytest.mark.parametrize("kind", [*KINDS, "lstm"])
def test_autocast_leaves_float64_as_it_is(kind):
    core = KINDS.get(kind, (LSTM,))[0](3, 4).double()
    x, state = torch.randn(5, 2, 3).double(), core.initial_state(2)
    expected = core(x, state)
    with torch.autocast("cpu", torch.bfloat16):
        found = core(x, state)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_a_forward_of_ones_own_runs_in_a_truncated(kind):
    class Louder(kind):
        def forward(self, x, state, t0=0, reset=None):
            output, ended = super().forward(x, state, t0, reset)
            return 2 * output, ended

    core = Louder(3, 4)
    x, state = torch.randn(5, 2, 3), core.initial_state(2)
    output, ended, _ = Truncated(core, 2, ZeroGradient())(x, state)
    expected, also = core(x, state)
    assert_close(output, expected, 1e-6)
    assert_close(ended, also, 1e-6)
