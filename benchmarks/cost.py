"""How cost grows: with chunks side by side, along T, N and B, and in memory."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import dnirnn
from benchmarks import steps
from benchmarks.timing import alternate
from dnirnn.unroll import Chunks

INPUT, HIDDEN, LENGTH = 64, 256, 8


def call(steps: int, batch: int, truncation: int, hidden: int = HIDDEN) -> Callable[[], None]:
    """One forward with backward of the operator, gradients None before it."""
    torch.manual_seed(0)
    core = dnirnn.LSTM(INPUT, hidden)
    x = torch.randn(steps, batch, INPUT, requires_grad=True)
    grad, state = torch.randn(steps, batch, hidden), core.initial_state(batch)

    def both() -> None:
        for parameter in (x, *core.parameters()):
            parameter.grad = None
        core.unroll(x, state, None, Chunks(steps, truncation)).output.backward(grad)

    return both


def chunks_side_by_side(batch: int, seconds: float) -> dict:
    """5 chunks of 8 steps in one call against backpropagation over the same 40 steps."""
    sides = {"chunks": call(40, batch, 8), "whole": call(40, batch, 40)}
    times = alternate(sides, seconds)
    return {
        "batch": batch,
        **{f"{name}_ms": 1e3 * value for name, value in times.items()},
        "ratio": times["chunks"] / times["whole"],
    }


class Line(NamedTuple):
    """time = fixed + each * n, fitted to the relative error."""

    along: str
    points: dict[int, float]  # n: milliseconds
    fixed: float
    each: float
    worst: float  # largest |measured / fitted - 1|


LINES: dict[str, Callable[[int], Callable[[], None]]] = {
    "T = 8 n, B 32": lambda n: call(8 * n, 32, 8 * n),
    "N = n chunks of 8 steps, B 32": lambda n: call(8 * n, 32, 8),
    "B = 32 n, T 8": lambda n: call(8, 32 * n, 8),
}
SIZES = (1, 2, 3, 4, 6, 8)


def line(along: str, seconds: float) -> Line:
    times = alternate({str(n): LINES[along](n) for n in SIZES}, seconds)
    measured = torch.tensor([1e3 * times[str(n)] for n in SIZES], dtype=torch.float64)
    n = torch.tensor(SIZES, dtype=torch.float64)
    design = torch.stack([1 / measured, n / measured], 1)
    fixed, each = torch.linalg.lstsq(design, torch.ones(len(n), 1).double()).solution.flatten()
    worst = (measured / (fixed + each * n) - 1).abs().max()
    points = dict(zip(SIZES, measured.tolist()))
    return Line(along, points, float(fixed), float(each), float(worst))


def peak_bytes() -> int:
    """The most memory that this process has had at once since :func:`forget_peak` (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def histories(hidden: int, batch: int, length: int) -> int:
    """Bytes that the backward pass of one layer reads: h, c and four gates of every step, float32."""
    return 4 * 6 * hidden * batch * length


def memory_of_a_chunk(hidden: int, batch: int, length: int) -> dict:
    """How far one call forward with backward raises the peak of a fresh process.

    Beside the histories it holds the input, the output and their gradients, which are the
    caller's, and the weights packed and their gradients, which do not grow with the chunk; so what
    is compared with the histories is what a twice as long chunk takes more, less its own output.
    """
    short, long = (in_process("chunk", hidden, batch, steps) for steps in (length, 2 * length))
    callers = 4 * batch * length * 2 * (hidden + INPUT)
    kept = histories(hidden, batch, length)
    grown = long - short - callers
    return {"hidden": hidden, "batch": batch, "steps": length, "histories": kept,
            "grown": grown, "ratio": grown / kept}  # fmt: skip


def memory_of_updates(count: int) -> int:
    """Peak bytes of a fresh process that makes so many DNI updates, H 128, B 32, T 8."""
    return in_process("updates", count)


def in_process(*words: object) -> int:
    command = [sys.executable, "-m", "benchmarks.cost", *map(str, words)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(what: str, *numbers: int) -> None:
    if what == "chunk":
        hidden, batch, length = numbers
        call(1, batch, 1, hidden)()
        forget_peak()
        before = peak_bytes()
        call(length, batch, length, hidden)()
        print(peak_bytes() - before)
    else:
        step = steps.ours(128, 32, LENGTH, 128)
        for _ in range(numbers[0]):
            step()
        print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
