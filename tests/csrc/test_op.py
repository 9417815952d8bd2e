"""The fused operator against the loop over a cell's step (law 1) and torch.nn.LSTM (law 2)."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from op_calls import (
    CELLS,
    FLOOR,
    LARGE,
    TOLERANCE,
    TOLERANCE_16,
    assert_equals_the_loop,
    by_op,
    calls,
    make_call,
    needs_op,
)
from strategies import assert_close

from dnirnn import LSTM, Core, ops

pytestmark = [
    needs_op,
    pytest.mark.usefixtures("device", "supported"),
]


# Of sizes that are drawn, a few cells among them: the loop rounds elsewhere, and of values that nearly
# cancel more is left of that.
FLOORS = {torch.float32: 1.0, torch.bfloat16: 2.0}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", TOLERANCE_16, ids=str)
@given(**calls)
def test_equals_the_loop_over_step(dtype, cell, **sizes):
    assert_equals_the_loop(make_call(**sizes, dtype=dtype, cell=cell), FLOORS.get(dtype, FLOOR))


@pytest.mark.parametrize("cell", CELLS)
@given(**calls)
def test_float32_weights_beside_bfloat16(cell, **sizes):
    """As under autocast: the operator rounds them, and their gradients are float32."""
    call = make_call(**sizes, dtype=torch.bfloat16, cell=cell)
    weights = [weight.detach().float().requires_grad_() for weight in call.weights]
    assert_equals_the_loop(call._replace(weights=weights), FLOORS[torch.bfloat16])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(8, 32, 64, 128, 1), (20, 5, 9, 33, 2)])
def test_bfloat16_is_as_near_to_float32_as_torchs_own(sizes, cell, device):
    """Values and gradients: the farthest within 1 %, and of an LSTM no farther than the loop over step's."""
    if device != "cpu":
        pytest.skip("the CPU's own arithmetic")
    steps, batch, inputs, hidden_size, layers = sizes
    torch.manual_seed(0)
    core = CELLS[cell](inputs, hidden_size, layers)
    x, by_output = torch.randn(steps, batch, inputs), torch.randn(steps, batch, hidden_size)
    start, by_state = torch.randn(2, batch, core.state_size)

    def run(forward, reduced):
        leaves = [x.clone().requires_grad_(), start.clone().requires_grad_()]
        with torch.autocast(device, torch.bfloat16, enabled=reduced):
            output, state = forward(*leaves)
        loss = (output.float() * by_output).sum() + (state * by_state).sum()
        return [output, state, *torch.autograd.grad(loss, [*leaves, *core.parameters()])]

    def loop(x, state):
        return Core.forward(core, x, state)

    exact = run(core, False)

    def farthest(found):
        pairs = zip(found, exact)
        return max(float(((one - other).norm() / other.norm()).detach()) for one, other in pairs)

    assert farthest(run(core, True)) <= 1e-2
    if cell == "LSTM":  # the steps of others are the operator's own
        assert farthest(run(core, True)) <= farthest(run(loop, True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", TOLERANCE_16, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_equals_the_loop_where_blocks_are_many(name, dtype, cell):
    assert_equals_the_loop(make_call(**LARGE[name], dtype=dtype, cell=cell))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("cell", "threads"),
    [("LSTM", 2), ("LSTM", 3), ("GRU", 3), ("RNN_TANH", 2)],
    indirect=["threads"],
)
@pytest.mark.parametrize("name", [name for name, sizes in LARGE.items() if sizes["steps"] <= 20])
def test_equals_the_loop_where_threads_are_many(name, threads, dtype, cell):
    """Of few steps: threads that wait for each other at each are slow where others take their cores."""
    assert_equals_the_loop(make_call(**LARGE[name], dtype=dtype, cell=cell))


@pytest.fixture
def threads(request, device):
    if device != "cpu":
        pytest.skip("threads are the CPU's")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_same_call_twice_is_equal_bit_for_bit(threads, dtype, cell):
    call = make_call(
        12, 32, 20, 72, 2, truncation=5, probe="steps", reset=True, estimator=(8,), dtype=dtype,
        cell=cell,
    )  # fmt: skip
    (*values, gradients), (*again, gradients_again) = by_op(call), by_op(call)
    assert all(torch.equal(a, b) for a, b in zip(values, again))
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again))


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_equals_the_loop_on_every_vector_path(capability, device):
    """ATen's own variable chooses; a process has one choice."""
    if device != "cpu":
        pytest.skip("vector paths are the CPU's")
    program = (
        "import test_op as t\n"
        "print(t.ops.extension.vector_path())\n"
        "for sizes in t.LARGE.values():\n"
        "    for dtype in t.TOLERANCE:\n"
        "        for cell in t.CELLS:\n"
        "            t.assert_equals_the_loop(t.make_call(**sizes, dtype=dtype, cell=cell))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ
        | {
            "ATEN_CPU_CAPABILITY": capability,
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    if ops.extension.vector_path() == "AVX-512":
        assert result.stdout.split() == [{"default": "128-bit", "avx2": "AVX2"}[capability]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [(6, 1, 3, 5, 1), (9, 17, 16, 33, 2), (4, 32, 64, 128, 1)])
def test_one_chunk_equals_torch(sizes, dtype):
    steps, batch, inputs, hidden_size, layers = sizes
    call = make_call(steps, batch, inputs, hidden_size, layers, dtype=dtype)
    oracle = torch.nn.LSTM(inputs, hidden_size, layers).to(dtype)
    with torch.no_grad():
        for parameter, weight in zip(oracle.parameters(), call.weights):
            parameter.copy_(weight)
    parts = call.state.detach().view(batch, layers, 2, hidden_size).permute(2, 1, 0, 3)
    # In rows: cuDNN takes no other state.
    h, c = (part.contiguous().clone().requires_grad_() for part in parts)
    x = call.x.detach().clone().requires_grad_()
    expected, ended = oracle(x, (h, c))
    expected_sent = torch.stack(ended).permute(2, 1, 0, 3).reshape(1, batch, -1)
    wanted = torch.autograd.grad(
        [expected, expected_sent], [x, h, c, *oracle.parameters()], [call.by_output, call.by_sent]
    )
    output, sent, _, (grad_x, grad_state, *found) = by_op(call)
    grad_h, grad_c = grad_state.view(batch, layers, 2, hidden_size).permute(2, 1, 0, 3)
    tolerance = TOLERANCE[dtype]
    assert_close(output, expected, tolerance, FLOOR)
    assert_close(sent, expected_sent, tolerance, FLOOR)
    assert_close([grad_x, grad_h, grad_c, *found], wanted, tolerance, FLOOR)


# Dense targets: one gradient for every state of a chunk.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigmoid_and_tanh_over_their_whole_range(dtype):
    """Each unit's one input goes through all four gates: from 1e-30 to far beyond saturation."""
    size = torch.logspace(-30, 4, 400, dtype=dtype)
    x = torch.cat([-size, size, torch.zeros(1), torch.linspace(-20, 20, 999)]).to(dtype)[None, :, None]
    core = LSTM(1, 1, dtype=dtype)
    for part in core.parameters():
        torch.nn.init.constant_(part, 0)
    core.weight_ih_l0.data[:, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])  # c = sigmoid(x) tanh(x)
    core.bias_ih_l0.data[3] = 60  # the output gate is open: h = tanh(c)
    output, state = core(x, core.initial_state(x.shape[1]).to(dtype))
    wide = x[0, :, 0].double()
    c = torch.sigmoid(wide) * torch.tanh(wide)
    bound = {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    # Relative to each value's own size, but for what float32 can't tell from sigmoid's zero.
    assert ((state[:, 1] - c).abs() <= bound * c.abs() + 1e-30).all()
    assert ((output[0, :, 0] - torch.tanh(c)).abs() <= bound * torch.tanh(c).abs() + 1e-30).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_a_number_stays_in_its_row(dtype, cell):
    """Odd sizes: of bfloat16 numbers two are multiplied at once, and a row's last is alone."""
    x = torch.zeros(3, 4, 3, dtype=dtype)
    x[1, 2, 0] = float("nan")
    core = CELLS[cell](3, 21, dtype=dtype)
    output, _ = core(x, core.initial_state(4))
    assert output[1:, 2].isnan().all()
    assert output[0].isfinite().all() and output[:, [0, 1, 3]].isfinite().all()


def test_dense_probes_hold_the_chunks_probes():
    """At the steps that chunks start from, a probe a step and a probe a chunk learn the same."""
    dense = make_call(9, 2, 3, 5, truncation=4, probe="steps", reset=True)
    sparse = dense._replace(probe=torch.zeros(3, 2, 10).double().requires_grad_())
    with torch.no_grad():
        dense.probe.zero_()
    _, _, _, (_, _, by_step, *_) = by_op(dense)
    _, _, _, (_, _, by_chunk, *_) = by_op(sparse)
    assert torch.equal(by_step[::4], by_chunk)
