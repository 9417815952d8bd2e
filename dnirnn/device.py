"""Devices by name: found, or refused in one line, and never another one in its place."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def find_device(name: str | torch.device) -> torch.device:
    """The device that cpu, cuda or cuda:N names, with its number.

    Raises ValueError for another name, and where torch can't compute there, saying why.
    """
    name = str(name)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device must be cpu, cuda or cuda:N; got {name!r}")
    if name == "cpu":
        return torch.device("cpu")
    if torch.version.cuda is None:
        raise ValueError(
            f"device {name} needs a torch built for CUDA; {torch.__version__} is built for the CPU"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch {torch.__version__} sees no CUDA device here")
    count, number = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if ":" not in name:
        number = torch.cuda.current_device()
    if number >= count:
        there = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise ValueError(f"device {name}: there is {there} here")
    return torch.device("cuda", number)


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it may run on, or what a container's quota is worth.

    cgroups: where the kernel shows the quotas (cgroup v2's cpu.max, v1's cpu.cfs_quota_us).
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroups / name).read_text() for name in names).split()
            # A part of a core that is left over is worth a thread; "max" and -1 are no quota.
            if quota != "max" and int(quota) > 0:
                cores = min(cores, -(-int(quota) // int(period)))
        except (OSError, ValueError):
            continue
    return max(1, cores)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a CUDA device goes to a stream of its own: the default one can't be captured.

    It begins when what was asked of the device before is done, and what is asked after waits for
    it. On the CPU it changes nothing.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(before)
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)
