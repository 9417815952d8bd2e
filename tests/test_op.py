"""The fused operator against the loop over LSTM.step (law 1) and torch.nn.LSTM (law 2)."""

import os
import random
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds
from torch import Tensor

from dnirnn import LSTM, Core, SyntheticGradient, ops

pytestmark = [
    pytest.mark.skipif(
        not ops.built, reason="the fused operators are not built here (dnirnn.ops.built is False)"
    ),
    pytest.mark.usefixtures("device"),
]

# The state's gradients are compared relative to their norm, however small that is.
FLOOR = 1e-2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Where a device has it.
TOLERANCE_16 = TOLERANCE | {torch.float16: 5e-3}


@pytest.fixture(autouse=True)
def supported(request, device):
    """Skips a dtype that the device's operator does not take, and a device that has none."""
    if not ops.built_for(device):
        pytest.skip(f"the fused operators are not built for {device} here")
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype")
    if dtype is not None and dtype not in ops.DTYPES[device]:
        pytest.skip(f"no fused operator of {dtype} on {device}")


class Call(NamedTuple):
    """The arguments of one call, and what its outputs' gradients are."""

    x: Tensor
    state: Tensor
    probe: Tensor | None
    weights: list[Tensor]
    estimator: list[Tensor]
    truncation: int
    scale: float
    reset: Tensor | None
    by_output: Tensor
    by_sent: Tensor

    @property
    def arguments(self):
        return self[:8]

    @property
    def wanted(self) -> list[Tensor]:
        probe = [] if self.probe is None else [self.probe]
        return [self.x, self.state, *probe, *self.weights]


def make_call(
    steps, batch, inputs, hidden_size, layers=1, truncation=None, probe="none", reset=False,
    estimator=None, seed=0, dtype=torch.float64,
) -> Call:  # fmt: skip
    torch.manual_seed(seed)
    truncation = steps if truncation is None else truncation
    chunks = -(-steps // truncation)
    held = torch.promote_types(dtype, torch.float32)
    weights = [w.detach().to(dtype) for w in LSTM(inputs, hidden_size, layers).weights]
    size = 2 * layers * hidden_size
    rows = {"none": 0, "chunks": chunks, "steps": steps}[probe]
    layers_of_estimator = []
    if estimator is not None:
        for parameter in SyntheticGradient(size, estimator).parameters():
            layers_of_estimator.append(torch.randn(parameter.shape).to(held) / size**0.5)
    call = Call(
        torch.randn(steps, batch, inputs).to(dtype),
        torch.randn(batch, size).to(held),
        0.1 * torch.randn(rows, batch, size).to(held) if rows else None,
        weights,
        layers_of_estimator,
        truncation,
        0.3,
        torch.rand(steps, batch) < 0.2 if reset else None,
        torch.randn(steps, batch, hidden_size).to(dtype),
        torch.randn(chunks, batch, size).to(held),
    )
    for tensor in call.wanted:
        tensor.requires_grad_()
    return call


def by_loop(call: Call):
    """(output, sent, synthetic, gradients) of LSTM.step in float64, cut as the contract says."""
    steps, _, inputs = call.x.shape
    core = LSTM(inputs, call.weights[1].shape[1], len(call.weights) // 4).double()
    core.load_state_dict(dict(zip(core.state_dict(), call.weights)))
    tensors = call.wanted[: -len(call.weights)]
    x, state, *rest = tensors = [t.detach().double().requires_grad_() for t in tensors]
    probe = rest[0] if rest else None
    every_step = probe is not None and len(probe) == steps
    outputs, sent, running = [], [], state
    for t in range(steps):
        n, k = divmod(t, call.truncation)
        if k == 0 and t:
            running = running.detach()
        if probe is not None and (every_step or k == 0):
            running = running + probe[t if every_step else n]
        if call.reset is not None:
            running = torch.where(call.reset[t, :, None], 0, running)
        output, running = core.step(x[t], running, t)
        outputs.append(output)
        if k + 1 == call.truncation or t + 1 == steps:
            sent.append(running)
    output, sent = torch.stack(outputs), torch.stack(sent)
    value = sent.detach()
    for i in range(0, len(call.estimator), 2):
        w, b = (p.double() for p in call.estimator[i : i + 2])
        value = (value.clamp(min=0) if i else value) @ w.T + b
    loss = (output * call.by_output).sum() + (sent * call.by_sent).sum()
    wanted = [*tensors, *core.parameters()]
    return output, sent, call.scale * value, torch.autograd.grad(loss, wanted)


def by_op(call: Call):
    output, sent, synthetic = ops.lstm_tbptt(*call.arguments)
    found = torch.autograd.grad([output, sent], call.wanted, [call.by_output, call.by_sent])
    return output, sent, synthetic, found


def assert_equals_the_loop(call: Call, floor: float = FLOOR):
    tolerance = TOLERANCE_16[call.x.dtype]
    output, sent, synthetic, found = by_op(call)
    expected_output, expected_sent, expected_synthetic, expected = by_loop(call)
    assert output.dtype == call.x.dtype and sent.dtype == call.state.dtype
    assert_close(output, expected_output, tolerance, floor)
    assert_close(sent, expected_sent, tolerance, floor)
    if call.estimator:
        assert not synthetic.requires_grad and synthetic.dtype == sent.dtype
        assert_close(synthetic, expected_synthetic, tolerance, floor)
    for tensor, one, other in zip(call.wanted, found, expected):
        assert one.dtype == tensor.dtype
        assert_close(one, other, tolerance, floor)


calls = dict(
    steps=st.integers(1, 11),
    batch=st.sampled_from([1, 2, 3, 7, 16, 17]),
    inputs=st.sampled_from([1, 3, 8, 16, 31]),
    hidden_size=st.sampled_from([1, 5, 8, 15, 16, 17, 24, 32, 33, 40]),
    layers=st.integers(1, 3),
    truncation=st.integers(1, 13),
    probe=st.sampled_from(["none", "chunks", "steps"]),
    reset=st.booleans(),
    estimator=st.sampled_from([None, (), (4,), (5, 3)]),
    seed=seeds,
)


@pytest.mark.parametrize("dtype", TOLERANCE_16, ids=str)
@given(**calls)
def test_equals_the_loop_over_step(dtype, **sizes):
    assert_equals_the_loop(make_call(**sizes, dtype=dtype))


@given(**calls)
def test_float32_weights_beside_bfloat16(**sizes):
    """As under autocast: the operator rounds them, and their gradients are float32."""
    call = make_call(**sizes, dtype=torch.bfloat16)
    weights = [weight.detach().float().requires_grad_() for weight in call.weights]
    # The loop rounds elsewhere: of one or two values that nearly cancel, more is left of that.
    assert_equals_the_loop(call._replace(weights=weights), 2 * FLOOR)


@pytest.mark.parametrize("sizes", [(8, 32, 64, 128, 1), (20, 5, 9, 33, 2)])
def test_bfloat16_is_as_near_to_float32_as_torchs_own(sizes, device):
    """Values and gradients: the farthest no farther than the loop over step's, and within 1 %."""
    if device != "cpu":
        pytest.skip("the CPU's own arithmetic")
    steps, batch, inputs, hidden_size, layers = sizes
    torch.manual_seed(0)
    core = LSTM(inputs, hidden_size, layers)
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

    exact = run(loop, False)

    def farthest(found):
        pairs = zip(found, exact)
        return max(float(((one - other).norm() / other.norm()).detach()) for one, other in pairs)

    assert farthest(run(core, True)) <= min(1e-2, farthest(run(loop, True)))


LARGE = {
    "one chunk": dict(steps=8, batch=32, inputs=64, hidden_size=64),
    "many rows": dict(steps=10, batch=130, inputs=20, hidden_size=33, truncation=5),
    "more rows than a group": dict(steps=20, batch=300, inputs=3, hidden_size=17, truncation=5),
    "long": dict(steps=33, batch=9, inputs=5, hidden_size=48, truncation=20, reset=True),
    "many steps of few rows": dict(steps=150, batch=8, inputs=3, hidden_size=17, truncation=70),
    "long chunk of many rows": dict(steps=40, batch=64, inputs=9, hidden_size=20, layers=2),
    "K 1": dict(steps=16, batch=4, inputs=64, hidden_size=65, truncation=1, probe="chunks"),
    "wide": dict(steps=3, batch=1, inputs=7, hidden_size=130, truncation=2, probe="steps"),
    "wide input": dict(steps=3, batch=5, inputs=300, hidden_size=16, truncation=2),
    "deep": dict(steps=7, batch=33, inputs=40, hidden_size=24, layers=4, truncation=3, reset=True),
}


@pytest.mark.parametrize("dtype", TOLERANCE_16, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_equals_the_loop_where_blocks_are_many(name, dtype):
    assert_equals_the_loop(make_call(**LARGE[name], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 3], indirect=True)
@pytest.mark.parametrize("name", LARGE)
def test_equals_the_loop_where_threads_are_many(name, threads, dtype):
    assert_equals_the_loop(make_call(**LARGE[name], dtype=dtype))


@pytest.fixture
def threads(request, device):
    if device != "cpu":
        pytest.skip("threads are the CPU's")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_equals_the_loop_on_every_vector_path(capability, device):
    """ATen's own variable chooses; a process has one choice."""
    if device != "cpu":
        pytest.skip("vector paths are the CPU's")
    program = (
        "import sys; sys.path.insert(0, 'tests'); import test_op as t\n"
        "print(t.ops.extension.vector_path())\n"
        "for sizes in t.LARGE.values():\n"
        "    for dtype in t.TOLERANCE:\n"
        "        t.assert_equals_the_loop(t.make_call(**sizes, dtype=dtype))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=os.path.dirname(os.path.dirname(__file__)),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_a_number_stays_in_its_row(dtype):
    """Odd sizes: of bfloat16 numbers two are multiplied at once, and a row's last is alone."""
    x = torch.zeros(3, 4, 3, dtype=dtype)
    x[1, 2, 0] = float("nan")
    core = LSTM(3, 21, dtype=dtype)
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


# What is asked for, and what isn't.


@given(**calls, chosen=st.integers(0, 2**16), others=st.booleans())
def test_any_part_of_the_gradients_alone(chosen, others, **sizes):
    """Whatever subset of the inputs is asked for, and whether the others require a gradient."""
    call = make_call(**sizes)
    *_, expected = by_op(call)
    generator = torch.Generator("cpu").manual_seed(chosen)
    bits = torch.randint(0, 2, (len(call.wanted),), generator=generator, device="cpu")
    bits[chosen % len(bits)] = 1
    asked = [tensor for tensor, bit in zip(call.wanted, bits) if bit]
    for tensor, bit in zip(call.wanted, bits.tolist()):
        tensor.requires_grad_(bool(bit) or others)
    output, sent, _ = ops.lstm_tbptt(*call.arguments)
    found = torch.autograd.grad([output, sent], asked, [call.by_output, call.by_sent])
    assert_close(found, [e for e, bit in zip(expected, bits) if bit])


@given(**calls)
def test_what_nobody_asks_for_is_not_computed(**sizes):
    call = make_call(**sizes)
    rows = 0 if call.probe is None else len(call.probe)
    with torch.no_grad():
        _, _, _, *histories = torch.ops.dnirnn.lstm_tbptt(*call.arguments)
        given = [call.by_output, call.by_sent, call.x, *histories, call.weights, call.reset]
        given += [call.truncation, rows]
        *_, of_probe, of_weights = torch.ops.dnirnn.lstm_tbptt_backward(*given, True, True, True)
        found = torch.ops.dnirnn.lstm_tbptt_backward(*given, False, False, False)
    assert len(of_weights) == len(call.weights)
    assert [found[0].numel(), found[1].numel(), found[3]] == [0, 0, []]
    assert torch.equal(found[2], of_probe)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@given(**{**calls, "probe": st.just("chunks")}, chunk=st.integers(0, 10))
def test_a_chunk_alone_pulls_back_what_it_does_beside_the_others(dtype, chunk, **sizes):
    call = make_call(**sizes, dtype=dtype)
    given = call.x, call.state, call.probe, call.weights, call.truncation, call.reset
    output, sent, pull = ops.lstm_pulling(*given)
    expected = ops.lstm_tbptt(*call.arguments)
    assert torch.equal(output, expected[0]) and torch.equal(sent, expected[1])
    n = chunk % len(sent)
    seed = torch.zeros_like(sent)
    seed[n] = call.by_sent[n]
    (back,) = torch.autograd.grad(sent, call.probe, seed)
    assert_close(pull(n, call.by_sent[n]), back[n], TOLERANCE[dtype], FLOOR)


@pytest.mark.parametrize("name", ["output", "sent"])
def test_one_output_alone(name):
    call = make_call(7, 3, 4, 9, 2, truncation=3, probe="chunks", reset=True)
    zeroed = call._replace(
        by_sent=torch.zeros_like(call.by_sent) if name == "output" else call.by_sent,
        by_output=torch.zeros_like(call.by_output) if name == "sent" else call.by_output,
    )
    output, sent, _ = ops.lstm_tbptt(*call.arguments)
    one, gradient = (output, call.by_output) if name == "output" else (sent, call.by_sent)
    found = torch.autograd.grad(one, call.wanted, gradient)
    assert_close(found, by_loop(zeroed)[-1])


def test_without_grad_nothing_is_attached_and_values_are_the_same():
    call = make_call(7, 3, 4, 9, truncation=3, probe="chunks", estimator=(4,))
    expected = ops.lstm_tbptt(*call.arguments)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = ops.lstm_tbptt(*call.arguments)
        assert not any(tensor.requires_grad for tensor in found)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_strides_do_not_matter():
    call = make_call(7, 3, 4, 9, truncation=3, probe="chunks", reset=True)

    def strided(tensor):
        if tensor is None:
            return None
        return tensor.detach().transpose(0, -1).contiguous().transpose(0, -1)

    expected = by_op(call)
    other = call._replace(
        x=strided(call.x).requires_grad_(),
        state=strided(call.state).requires_grad_(),
        probe=strided(call.probe).requires_grad_(),
        reset=strided(call.reset),
        weights=[strided(w).requires_grad_() for w in call.weights],
        by_output=call.by_output[:1, :1, :1].expand_as(call.by_output),
    )
    expected = by_op(call._replace(by_output=other.by_output.contiguous()))
    found = by_op(other)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2]))
    assert all(torch.equal(a, b) for a, b in zip(found[-1], expected[-1]))


def test_no_output_aliases_another_or_an_input():
    """Writing into one leaves the others, the inputs and the backward pass as they were."""
    call = make_call(4, 2, 3, 5, truncation=2, probe="chunks", estimator=())
    expected = by_op(call)
    tensors = [t for t in (*call.wanted, *call.estimator)]
    output, sent, synthetic = ops.lstm_tbptt(*call.arguments)
    kept = [t.detach().clone() for t in (sent, synthetic, *tensors)]
    (found,) = torch.autograd.grad(output.sum(), [call.x], retain_graph=True)
    output.detach().zero_()
    assert all(torch.equal(a, b) for a, b in zip((sent, synthetic, *tensors), kept))
    sent.detach().zero_(), synthetic.zero_()
    (again,) = torch.autograd.grad(output.sum(), [call.x], retain_graph=True)
    assert torch.equal(found, again)
    found = torch.autograd.grad([output, sent], call.wanted, [call.by_output, call.by_sent])
    assert all(torch.equal(a, b) for a, b in zip(found, expected[-1]))


# The graph.


def test_a_second_backward_is_right_or_refused():
    call = make_call(7, 3, 4, 9, 2, truncation=3, probe="chunks", reset=True)
    *_, expected = by_op(call)
    outputs = ops.lstm_tbptt(*call.arguments)[:2]
    cotangents = [call.by_output, call.by_sent]
    first = torch.autograd.grad(outputs, call.wanted, cotangents, retain_graph=True)
    second = torch.autograd.grad(outputs, call.wanted, cotangents)
    for found in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(outputs, call.wanted, cotangents)


def test_a_second_derivative_is_refused():
    call = make_call(5, 2, 3, 4)
    output, _, _ = ops.lstm_tbptt(*call.arguments)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grad,) = torch.autograd.grad(output.square().sum(), [call.x], create_graph=True)
        grad.sum().backward()


def test_forwards_before_backwards_keep_their_own_histories():
    """Calls of several sizes, then their backward passes in another order."""
    calls = [
        make_call(7, 3, 4, 9, truncation=3, seed=1),
        make_call(5, 2, 6, 17, 2, truncation=2, seed=2),
        make_call(7, 3, 4, 9, truncation=3, seed=3),
    ]
    expected = [by_op(call)[-1] for call in calls]
    outputs = [ops.lstm_tbptt(*call.arguments)[:2] for call in calls]
    for i in (1, 2, 0):
        call = calls[i]
        found = torch.autograd.grad(outputs[i], call.wanted, [call.by_output, call.by_sent])
        assert all(torch.equal(a, b) for a, b in zip(found, expected[i]))


def test_memory_that_is_used_again_is_nobody_elses_and_does_not_grow():
    """Outputs keep what they say while others, small and large, come and go."""
    core, drawn = LSTM(8, 64), random.Random(0)

    def come_and_go():
        held = []
        for steps in [*(drawn.randint(8, 120) for _ in range(40)), 1500, 40, 1500]:
            output, _ = core(torch.randn(steps, 32, 8), core.initial_state(32))
            held.append((output.detach(), output.detach().clone()))
            if len(held) > 6:
                held.pop(drawn.randrange(len(held)))
        assert all(torch.equal(output, kept) for output, kept in held)

    come_and_go()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    come_and_go(), come_and_go()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB more at the peak"


def test_a_weight_changed_before_the_backward_is_refused():
    call = make_call(5, 2, 3, 4)
    output, _, _ = ops.lstm_tbptt(*call.arguments)
    with torch.no_grad():
        call.weights[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_same_call_twice_is_equal_bit_for_bit(threads, dtype):
    call = make_call(
        12, 32, 20, 72, 2, truncation=5, probe="steps", reset=True, estimator=(8,), dtype=dtype
    )
    (*values, gradients), (*again, gradients_again) = by_op(call), by_op(call)
    assert all(torch.equal(a, b) for a, b in zip(values, again))
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again))


def test_runs_in_threads_of_python():
    """Work buffers are a thread's own."""
    made = [make_call(9, 8, 16, 40, truncation=4, probe="chunks", seed=i) for i in range(6)]
    expected = [by_op(call) for call in made]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(by_op, made))
    for (*values, gradients), (*others, wanted) in zip(found, expected):
        assert all(torch.equal(a, b) for a, b in zip(values, others))
        assert all(torch.equal(a, b) for a, b in zip(gradients, wanted))


# Bad input: one line that names the argument, its value and what was expected.


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x=torch.randn(4, 3).double()), ValueError, "x must be .*got .*4, 3"),
        (dict(x=torch.randn(0, 2, 3).double()), ValueError, "x must be .*at least 1.*0, 2, 3"),
        (
            dict(x=torch.randn(4, 0, 3).double(), state=torch.zeros(0, 8).double()),
            ValueError,
            "x must be .*B at least 1.*got .*4, 0, 3",
        ),
        (dict(x=torch.zeros(4, 2, 4).double()), ValueError, r"weights\[0\] .*16, 4.*got .*16, 3"),
        (dict(x=torch.randn(4, 2, 3)), TypeError, r"weights\[0\] is .*Double.*x is .*Float"),
        (dict(state=torch.randn(2, 7).double()), ValueError, "state must be .*2, 8.*got .*2, 7"),
        (dict(state=torch.randn(2, 8)), TypeError, "state must be .*Double.*got .*Float"),
        (dict(probe=torch.randn(3, 2, 8).double()), ValueError, "probe must be .*got .*3, 2, 8"),
        (dict(probe=torch.randn(2, 2, 8)), TypeError, "probe must be .*Double.*got .*Float"),
        (dict(weights=[]), ValueError, "weights must be .*got 0"),
        (dict(weights=[torch.zeros(16, 3)] * 3), ValueError, "weights must be .*got 3"),
        (dict(truncation=0), ValueError, "truncation must be at least 1.*got 0"),
        (dict(truncation=-2), ValueError, "truncation must be at least 1.*got -2"),
        (dict(reset=torch.zeros(4, 3).bool()), ValueError, "reset must be .*4, 2.*got .*4, 3"),
        (dict(reset=torch.zeros(4, 2)), TypeError, "reset must be .*bool.*got .*Float"),
        (dict(estimator=[torch.zeros(8, 8).double()]), ValueError, "estimator .*got 1"),
        (
            dict(estimator=[torch.zeros(7, 8).double(), torch.zeros(7).double()]),
            ValueError,
            r"estimator\[0\] must be .*8.*got .*7, 8",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, error, words):
    call = make_call(4, 2, 3, 4, truncation=2)
    with pytest.raises(error, match=words):
        ops.lstm_tbptt(*call._replace(**change).arguments)


@pytest.mark.parametrize(
    ("index", "wrong", "words"),
    [
        (0, torch.zeros(4, 2, 5).double(), "grad_output must be .*4, 2, 4.*got .*4, 2, 5"),
        (1, torch.zeros(1, 2, 8).double(), "grad_sent must be .*2, 2, 8.*got .*1, 2, 8"),
        (3, torch.zeros(1, 2, 2, 1, 4).double(), "h must be .*got .*1, 2, 2, 1, 4"),
        (4, torch.zeros(1, 2, 1, 2, 4).double(), "c must be .*got .*1, 2, 1, 2, 4"),
        (5, torch.zeros(1, 2, 2, 2, 16).double(), "gates must be .*got .*1, 2, 2, 2, 16"),
        (6, torch.zeros(1, 4, 2, 4).double(), "between must be .*got .*1, 4, 2, 4"),
        (8, torch.zeros(4, 1).bool(), "reset must be .*4, 2.*got .*4, 1"),
        (10, 1, "probe_rows must be 0, 2 chunks or 4 steps; got 1"),
    ],
    ids=["grad_output", "grad_sent", "h", "c", "gates", "between", "reset", "probe_rows"],
)
def test_bad_input_of_the_backward_operator(index, wrong, words, device):
    """Called directly: nothing is read or written where nothing is."""
    if device != "cpu":
        pytest.skip("the CPU's histories")
    call = make_call(4, 2, 3, 4, truncation=2)
    with torch.no_grad():
        _, _, _, *histories = torch.ops.dnirnn.lstm_tbptt(*call.arguments)
        given = [call.by_output, call.by_sent, call.x, *histories, call.weights, None, 2, 2]
        given += [True, True, True]
        torch.ops.dnirnn.lstm_tbptt_backward(*given)
        with pytest.raises(ValueError, match=words):
            torch.ops.dnirnn.lstm_tbptt_backward(*given[:index], wrong, *given[index + 1 :])
