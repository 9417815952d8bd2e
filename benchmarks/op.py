"""The operator against both of torch.nn.LSTM's CPU paths: oneDNN, and native (oneDNN off)."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import dnirnn
from benchmarks.timing import alternate

INPUT = 64
HIDDEN, BATCH, STEPS = (128, 256, 512, 1024), (1, 32, 128), (1, 2, 4, 8, 20, 40)
ROWS = 32  # of the products that are the ceiling


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
    """One point of the grid. The ceiling takes its turns too: how fast it is depends on the hour."""
    product, alone = 2 * ROWS * hidden * 4 * hidden, brgemm(hidden)
    repeats = round(min(max(flops(hidden, batch, steps, backward) / product, 1), 2e9 / product))
    beside = {} if alone is None else {"brgemm": lambda: alone(repeats)}
    times = alternate({**sides(hidden, batch, steps, backward), **beside}, seconds)
    best = min(times["onednn"], times["native"])
    rate = flops(hidden, batch, steps, backward) / times["ours"] / 1e9
    ceiling = None if alone is None else repeats * product / times["brgemm"] / 1e9
    return {
        "hidden": hidden,
        "batch": batch,
        "steps": steps,
        "backward": backward,
        **{f"{name}_ms": 1e3 * times[name] for name in ("ours", "onednn", "native")},
        "vs_onednn": times["onednn"] / times["ours"],
        "vs_native": times["native"] / times["ours"],
        "vs_faster": best / times["ours"],
        "gflops": rate,
        "brgemm_gflops": ceiling,
        "of_ceiling": ceiling and rate / ceiling,
    }


def in_bfloat16(hidden: int, batch: int, steps: int, seconds: float) -> dict:
    """Forward with backward in bfloat16 (autocast: float32 parameters) against our own float32."""
    core = dnirnn.LSTM(INPUT, hidden)
    grad = torch.randn(steps, batch, hidden)
    state = core.initial_state(batch)
    both = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(steps, batch, INPUT, dtype=dtype, requires_grad=True)

        def run(x=x, grad=grad.to(dtype), reduced=dtype == torch.bfloat16) -> None:  # noqa: B008
            for parameter in (x, *core.parameters()):
                parameter.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                output, _ = core(x, state)
            output.backward(grad)

        both[str(dtype).removeprefix("torch.")] = run
    product, alone = 2 * ROWS * hidden * 4 * hidden, brgemm(hidden, torch.bfloat16)
    repeats = round(min(max(flops(hidden, batch, steps, True) / product, 1), 4e9 / product))
    beside = {} if alone is None else {"brgemm": lambda: alone(repeats)}
    times = alternate({**both, **beside}, seconds)
    rate = flops(hidden, batch, steps, True) / times["bfloat16"] / 1e9
    ceiling = None if alone is None else repeats * product / times["brgemm"] / 1e9
    return {
        "hidden": hidden,
        "batch": batch,
        "steps": steps,
        **{f"{name}_ms": 1e3 * times[name] for name in both},
        "vs_float32": times["float32"] / times["bfloat16"],
        "gflops": rate,
        "brgemm_gflops": ceiling,
        "of_ceiling": ceiling and rate / ceiling,
    }


def step_by_step(hidden: int, seconds: float) -> dict:
    """One step a call without gradients, B 1: what sampling does."""
    times = alternate(sides(hidden, 1, 1, False), seconds)
    return {
        "hidden": hidden,
        **{f"{name}_us": 1e6 * value for name, value in times.items()},
        "vs_faster": min(times["onednn"], times["native"]) / times["ours"],
    }


@functools.cache
def brgemm(
    hidden: int, dtype: torch.dtype = torch.float32
) -> Callable[[int], object] | None:
    """ATen's brgemm alone, so many times: [32, H] by [H, 4 H]. None where there is none here."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("ceiling.cpp")
    module = load("dnirnn_ceiling", [str(source)], extra_cflags=["-O3", "-fopenmp"])
    kind = module.BFloat16Products if dtype == torch.bfloat16 else module.Products
    products = kind(ROWS, hidden, 4 * hidden)
    try:
        return products.run if products.run(1) else None
    except RuntimeError:  # a CPU that oneDNN has no such product for
        return None


def ceiling(seconds: float) -> dict[int, float]:
    """GFLOP/s of brgemm alone at 32 rows, by hidden size; 0 where there is none."""
    rates = {}
    for hidden in HIDDEN:
        product, alone = 2 * ROWS * hidden * 4 * hidden, brgemm(hidden)
        repeats = max(3, int(2e9 / product))
        rates[hidden] = 0.0
        if alone is not None:
            took = alternate({"brgemm": lambda: alone(repeats)}, seconds)["brgemm"]
            rates[hidden] = repeats * product / took / 1e9
    return rates
