"""The operator against both of torch.nn.LSTM's CPU paths: oneDNN, and native (oneDNN off)."""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import dnirnn
from benchmarks.timing import alternate

INPUT = 64
HIDDEN, BATCH, STEPS = (128, 256, 512, 1024), (1, 32, 128), (1, 2, 4, 8, 20, 40)


def flops(hidden: int, batch: int, steps: int, backward: bool) -> float:
    """Of the products: 8 T B H (H + I) forward, twice that backward."""
    return (24 if backward else 8) * steps * batch * hidden * (hidden + INPUT)


def sides(hidden: int, batch: int, steps: int, backward: bool) -> dict[str, Callable]:
    reference, core = nn.LSTM(INPUT, hidden), dnirnn.LSTM(INPUT, hidden)
    core.load_state_dict(reference.state_dict())
    x = torch.randn(steps, batch, INPUT, requires_grad=backward)
    grad = torch.randn(steps, batch, hidden)
    state = core.initial_state(batch)
    start = (torch.zeros(1, batch, hidden), torch.zeros(1, batch, hidden))

    def run(module: nn.Module, initial) -> Callable:
        parameters = [x, *module.parameters()]

        def both() -> None:
            for parameter in parameters:
                parameter.grad = None
            module(x, initial)[0].backward(grad)

        def forward() -> None:
            with torch.no_grad():
                module(x, initial)

        return both if backward else forward

    onednn = run(reference, start)

    def native() -> None:
        torch._C._set_mkldnn_enabled(False)
        try:
            onednn()
        finally:
            torch._C._set_mkldnn_enabled(True)

    return {"ours": run(core, state), "onednn": onednn, "native": native}


def point(hidden: int, batch: int, steps: int, backward: bool, seconds: float) -> dict:
    times = alternate(sides(hidden, batch, steps, backward), seconds)
    best = min(times["onednn"], times["native"])
    return {
        "hidden": hidden,
        "batch": batch,
        "steps": steps,
        "backward": backward,
        **{f"{name}_ms": 1e3 * value for name, value in times.items()},
        "vs_onednn": times["onednn"] / times["ours"],
        "vs_native": times["native"] / times["ours"],
        "vs_faster": best / times["ours"],
        "gflops": flops(hidden, batch, steps, backward) / times["ours"] / 1e9,
    }


def ceiling() -> dict[int, float]:
    """GFLOP/s of ATen's brgemm alone at 32 rows, by hidden size: the median of five."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("ceiling.cpp")
    module = load("dnirnn_ceiling", [str(source)], extra_cflags=["-O3", "-fopenmp"])
    rates = {}
    for hidden in HIDDEN:
        repeats = max(3, int(2e9 / (2 * 32 * hidden * 4 * hidden)))
        runs = [module.brgemm_rate(32, hidden, 4 * hidden, repeats) for _ in range(5)]
        rates[hidden] = statistics.median(runs)
    return rates
