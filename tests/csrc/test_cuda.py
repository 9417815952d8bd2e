"""What only a GPU shows: it computes what the CPU does, in a CUDA graph too, in the current stream.

The CPU's own laws run there as well: see the fixture `device`. `pytest -m cuda` runs them all.
"""

import pytest
import torch
from op_calls import LARGE, Call, by_op, make_call
from strategies import assert_close

from dnirnn import LSTM, SyntheticGradient, Truncated, backward, ops

pytestmark = pytest.mark.cuda

FLOOR = 1e-2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Sizes that people train: more than a tile of everything, and none a multiple of all tiles.
TRAINED = {
    "H 256": dict(steps=8, batch=32, inputs=64, hidden_size=256, estimator=(256,), probe="chunks"),
    "H 512": dict(steps=16, batch=48, inputs=96, hidden_size=512, truncation=8, probe="chunks"),
    "H 1024": dict(steps=8, batch=32, inputs=128, hidden_size=1024, probe="chunks"),
    "H 1024, five chunks": dict(steps=37, batch=8, inputs=64, hidden_size=1024, truncation=8),
    "H 200, two layers": dict(
        steps=21, batch=130, inputs=50, hidden_size=200, layers=2, truncation=8, probe="steps",
        reset=True,
    ),
    "H 333": dict(steps=9, batch=20, inputs=31, hidden_size=333, truncation=4, reset=True),
}  # fmt: skip


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    if not ops.built_for("cuda"):
        pytest.skip("the fused operators are not built for cuda here")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def moved(value, to):
    """A copy of a call or a part of it, of this device or dtype; whether a gradient is wanted stays."""
    if isinstance(value, Call):
        return Call(*(moved(part, to) for part in value))
    if isinstance(value, list):
        return [moved(part, to) for part in value]
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(to, torch.dtype) and not value.is_floating_point():
        return value
    return value.detach().to(to).requires_grad_(value.requires_grad)


def flat(outputs) -> list[torch.Tensor]:
    *values, gradients = outputs
    return [value.cpu() for value in (*values, *gradients)]


@pytest.fixture(params=["auto", "steps", "on chip"])
def cuda_path(request) -> str:
    """How the steps are taken; on chip only where they fit."""
    torch.ops.dnirnn.cuda_path(request.param)
    yield request.param
    torch.ops.dnirnn.cuda_path("auto")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [*TRAINED, *LARGE])
def test_a_gpu_computes_what_the_cpu_does(name, dtype, cuda_path):
    """In float32 on the CPU where the dtype has 16 bits: what is tested is the GPU's rounding."""
    call = make_call(**(TRAINED | LARGE)[name], dtype=dtype)
    wide = call if dtype in (torch.float32, torch.float64) else moved(call, torch.float32)
    found, expected = flat(by_op(moved(call, "cuda"))), flat(by_op(wide))
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert_close(one, other, TOLERANCE[dtype], FLOOR)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", TRAINED)
def test_the_same_call_twice_is_equal_bit_for_bit(name, dtype, cuda_path):
    call = moved(make_call(**TRAINED[name], dtype=dtype), "cuda")
    assert all(torch.equal(a, b) for a, b in zip(flat(by_op(call)), flat(by_op(call))))


def test_tf32_is_used_where_torchs_lstm_would_use_it(cuda_path, monkeypatch):
    """And the switch of other matrix products is as it was."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no tf32")
    call = moved(make_call(4, 64, 128, 256, dtype=torch.float32), "cuda")
    for products in (False, True):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", products)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        exact = flat(by_op(call))
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        fast = flat(by_op(call))
        assert torch.backends.cuda.matmul.allow_tf32 is products
        assert_close(fast, exact, 1e-2)
        assert not torch.equal(fast[0], exact[0])


def update(model, x, y, state):
    """One update's gradients, as a training loop makes them."""
    model.zero_grad()
    output, ended, interfaces = model(x, state)
    backward((output - y).square().mean(), interfaces, 1 / y[..., 0].numel())
    return output.detach(), ended, *(p.grad for p in model.parameters())


@pytest.mark.parametrize("hidden_size", [64, 333])
def test_a_cuda_graph_replays_the_eager_update(hidden_size, cuda_path):
    """Captured once, replayed on other data: nothing waits for the host or remembers it."""
    with torch.device("cuda"):
        core = LSTM(24, hidden_size, 2)
        estimator = SyntheticGradient(core.state_size, (32,), 0.3, 0.3)
        torch.nn.init.normal_(estimator.layers[-1].weight, std=0.1)
        model = Truncated(core, 4, estimator)
        data = [
            (torch.randn(10, 16, 24), torch.randn(10, 16, hidden_size),
             torch.randn(16, core.state_size))
            for _ in range(3)
        ]  # fmt: skip
    expected = [[t.clone() for t in update(model, *one)] for one in data]
    held = [t.clone() for t in data[0]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            update(model, *held)
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = update(model, *held)
    for one, wanted in zip(data, expected):
        for to, value in zip(held, one):
            to.copy_(value)
        graph.replay()
        assert_close(list(found), wanted, 1e-6)


def test_the_work_goes_to_the_current_stream(cuda_path):
    """Behind a wait in that stream, so that work in another would read what is not there yet."""
    call = moved(make_call(8, 16, 32, 64, truncation=4, probe="chunks", estimator=()), "cuda")
    expected = flat(by_op(call))
    x = call.x.detach()
    late = torch.full_like(x, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        found = by_op(call._replace(x=late.requires_grad_()))
    stream.synchronize()
    assert_close(flat(found), expected, 1e-12)


def test_nothing_in_the_operator_waits_for_the_device(cuda_path):
    call = moved(make_call(8, 16, 32, 64, truncation=3, probe="chunks", estimator=(8,)), "cuda")
    by_op(call)
    torch.cuda.set_sync_debug_mode("error")
    try:
        by_op(call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_tensors_of_two_devices_are_refused():
    call = make_call(4, 2, 3, 4, truncation=2, probe="chunks", reset=True)
    on_gpu = moved(call, "cuda")
    for name in ("state", "probe", "reset", "weights"):
        with pytest.raises(ValueError, match=f"{name}.* on cpu, x on cuda:0"):
            ops.tbptt(*on_gpu._replace(**{name: getattr(call, name)}).arguments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_opcheck(dtype):
    sizes = dict(layers=2, truncation=2, probe="steps", reset=True, estimator=(4,))
    call = moved(make_call(5, 2, 3, 5, **sizes, dtype=dtype), "cuda")
    torch.library.opcheck(torch.ops.dnirnn.tbptt.default, call.arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_in_its_dtype_and_leaves_the_state_wide(dtype):
    core = LSTM(8, 32).cuda()
    estimator = SyntheticGradient(core.state_size, (16,)).cuda()
    model = Truncated(core, 3, estimator)
    x = torch.randn(7, 4, 8, device="cuda")
    with torch.autocast("cuda", dtype):
        output, state, interfaces = model(x, core.initial_state(4))
        loss = output.float().square().sum()
    backward(loss, interfaces)
    assert output.dtype == dtype
    assert state.dtype == interfaces[0].synthetic.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
