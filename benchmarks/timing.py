"""Timing: sides that take turns, medians, and the machine by name."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def alternate(
    sides: dict[str, Callable[[], object]], seconds: float = 1.0, rounds: int = 5
) -> dict[str, float]:
    """Median seconds of one call of each side.

    The sides take turns, so that whatever else the machine does falls on all of them alike. A turn
    begins with a call that is not timed, because the side before has had the caches, and repeats a
    short call until it has taken a millisecond. Runs for about ``seconds`` a side, and for
    ``rounds`` rounds at least.
    """
    repeats = {}
    for name, call in sides.items():
        call(), call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, round(1e-3 / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds * len(sides)
        while time.perf_counter() < end or len(next(iter(times.values()))) < rounds:
            for name, call in sides.items():
                call()
                began = time.perf_counter()
                for _ in range(repeats[name]):
                    call()
                times[name].append((time.perf_counter() - began) / repeats[name])
    finally:
        gc.enable()
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith(("model", "cpu family"))]
        found = dict(line.split(":", 1) for line in names)
        found = {key.strip(): value.strip() for key, value in found.items()}
        if "model name" in found:
            family, number = found.get("cpu family", "?"), found.get("model", "?")
            model = f"{found['model name']} (family {family}, model {number})"
    from dnirnn import ops

    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dnirnn": ops.describe(),
    }
