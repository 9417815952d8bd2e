"""How calls are timed on a GPU: by CUDA events, in turns, in graphs; and what it reaches at most."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PRECISIONS = {
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
}


@contextmanager
def products_of(precision: str) -> Iterator[None]:
    """float32 products may use tf32 but where it says float32: in torch, cuDNN's LSTM and ours."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allowed = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def path_of(name: str) -> Iterator[None]:
    """How our operator takes its steps."""
    torch.ops.dnirnn.cuda_path(name)
    try:
        yield
    finally:
        torch.ops.dnirnn.cuda_path("auto")


def captured(call: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of a call that was warmed up."""
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    return graph.replay


def alternate(
    sides: dict[str, Callable[[], None]], seconds: float, rounds: int = 7
) -> dict[str, float]:
    """Median seconds of one call of each side, by CUDA events around turns of some milliseconds."""

    def turn(call: Callable[[], None], repeats: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    repeats, times = {}, {name: [] for name in sides}
    for name, call in sides.items():
        turn(call, 3)
        repeats[name] = max(1, min(1000, round(5e-3 / turn(call, 5))))
    for _ in range(max(rounds, min(100, round(seconds / 5e-3)))):
        for name, call in sides.items():
            times[name].append(turn(call, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def timeline(call: Callable[[], None], calls: int = 3) -> list[str]:
    """A line a kernel of the last of some calls: microseconds since its first began, how long, which."""
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    on_device = [event for event in found.events() if event.device_type.name == "CUDA"]
    on_device.sort(key=lambda event: event.time_range.start)
    last = on_device[len(on_device) - len(on_device) // calls :]
    return [
        f"{event.time_range.start - last[0].time_range.start:8.1f}"
        f" {event.time_range.end - event.time_range.start:6.1f} {event.name[:150]}"
        for event in last
    ]


def peak_of(call: Callable[[], None]) -> float:
    """MiB that a call needs at its peak beyond what is there."""
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def ceilings() -> dict[str, float]:
    """What this GPU reaches: flops a second in products, bytes a second, seconds from step to step.

    A step is a small kernel that waits for the one before, in a graph: what a recurrence pays that
    is one kernel a step. A kernel that stays on the chip pays a barrier over its blocks.
    """
    rates = {}
    for precision, dtype in PRECISIONS.items():
        a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
        out = torch.empty_like(a)
        with products_of(precision):
            time = alternate({"mm": lambda: torch.mm(a, b, out=out)}, 0.1, 3)["mm"]
        rates[precision] = 2 * 8192**3 / time
    large = torch.randn(2**28, device="cuda")
    into = torch.empty_like(large)
    rates["bytes"] = 2 * 2**30 / alternate({"copy": lambda: into.copy_(large)}, 0.1)["copy"]
    small = torch.zeros(32, device="cuda")

    def chain() -> None:
        for _ in range(200):
            small.add_(1)

    rates["step"] = alternate({"chain": captured(chain)}, 0.1)["chain"] / 200
    return rates
