"""Every stack against the same stack as a person would write it: a Python loop of torch's cells.

Where torch has no such cell (layer norm, detectors, gates over time), the peer is the loop over the
core's own step, which is what such code looks like.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dnirnn
from benchmarks.timing import alternate
from dnirnn import Core

INPUT, HIDDEN, BATCH, STEPS = 64, 256, 32, (8, 40)
CELLS = {dnirnn.LSTM: nn.LSTMCell, dnirnn.GRU: nn.GRUCell, dnirnn.RNN: nn.RNNCell}


class Peer(NamedTuple):
    """A core, and the loop that computes the same outputs [T, B, O] of x [T, B, I], from zeros.

    fused: made of fused parts, so that it should be much faster than the loop.
    """

    core: Core
    loop: Callable[[Tensor], Tensor]
    fused: bool


def cell_of(core: Core) -> nn.Module:
    """torch's cell with the very parameters of a core of one layer."""
    cell = CELLS[type(core)](core.input_size, core.output_size)
    for name, parameter in core.named_parameters():
        setattr(cell, name.removeprefix("module.").removesuffix("_l0"), parameter)
    return cell


def output_of(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


def zeros(cell: nn.Module, batch: int) -> Tensor | tuple[Tensor, Tensor]:
    h = torch.zeros(batch, cell.hidden_size, dtype=cell.weight_hh.dtype)
    return (h, h) if isinstance(cell, nn.LSTMCell) else h


def deep() -> Peer:
    core = dnirnn.Deep([dnirnn.LSTM(INPUT, HIDDEN), dnirnn.LSTM(HIDDEN, HIDDEN)])
    cells = [cell_of(part) for part in core.cores]

    def loop(x: Tensor) -> Tensor:
        states, outputs = [zeros(cell, x.shape[1]) for cell in cells], []
        for y in x:
            for l, cell in enumerate(cells):
                states[l] = cell(y, states[l])
                y = output_of(states[l])
            outputs.append(y)
        return torch.stack(outputs)

    return Peer(core, loop, True)


def dilated(kind: str) -> Peer:
    core = dnirnn.Dilated(INPUT, HIDDEN, [1, 2, 4], cell=kind)
    layers = [(cell_of(part.cell), part.dilation) for part in core.cores]

    def loop(x: Tensor) -> Tensor:
        states = [[zeros(cell, x.shape[1])] * dilation for cell, dilation in layers]
        outputs = []
        for y in x:
            for (cell, _), past in zip(layers, states):
                past.append(cell(y, past.pop(0)))
                y = output_of(past[-1])
            outputs.append(y)
        return torch.stack(outputs)

    return Peer(core, loop, True)


def clockwork(kind: str) -> Peer:
    core = dnirnn.Clockwork(INPUT, HIDDEN, [1, 2, 4, 8], cell=kind)
    cells = [cell_of(part) for part in core.parts]

    def loop(x: Tensor) -> Tensor:
        states, outputs = [zeros(cell, x.shape[1]) for cell in cells], []
        for t, x_t in enumerate(x):
            before = [output_of(state) for state in states]
            for i, (cell, period) in enumerate(zip(cells, core.periods)):
                if t % period == 0:
                    states[i] = cell(torch.cat([x_t, *before[i + 1 :]], 1), states[i])
            outputs.append(torch.cat([output_of(state) for state in states], 1))
        return torch.stack(outputs)

    return Peer(core, loop, True)


def every() -> Peer:
    slow = dnirnn.Every(dnirnn.LSTM(HIDDEN, HIDDEN), 4)
    core = dnirnn.Deep([dnirnn.LSTM(INPUT, HIDDEN), slow], residual=True)
    below, above = cell_of(core.cores[0]), cell_of(slow.core)

    def loop(x: Tensor) -> Tensor:
        low, high, outputs = zeros(below, x.shape[1]), zeros(above, x.shape[1]), []
        for t, x_t in enumerate(x):
            low = below(x_t, low)
            if (t + 1) % 4 == 0:
                high = above(low[0], high)
            outputs.append(low[0] + high[0])
        return torch.stack(outputs)

    return Peer(core, loop, True)


def hierarchy() -> Peer:
    core = dnirnn.Hierarchy(dnirnn.LSTM(INPUT + HIDDEN, HIDDEN), dnirnn.LSTM(HIDDEN, HIDDEN), 4)
    fast, slow = cell_of(core.fast), cell_of(core.slow)

    def loop(x: Tensor) -> Tensor:
        low, high, outputs = zeros(fast, x.shape[1]), zeros(slow, x.shape[1]), []
        for t, x_t in enumerate(x):
            low = fast(torch.cat([x_t, high[0]], 1), low)
            if (t + 1) % 4 == 0:
                high = slow(low[0], high)
            outputs.append(torch.cat([low[0], high[0]], 1))
        return torch.stack(outputs)

    return Peer(core, loop, True)


def by_step(core: Core, fused: bool = False) -> Peer:
    def loop(x: Tensor) -> Tensor:
        return Core.forward(core, x, core.initial_state(x.shape[1]))[0]

    return Peer(core, loop, fused)


PEERS: dict[str, Callable[[], Peer]] = {
    "deep (2 LSTMs)": deep,
    "clockwork 1 2 4 8": lambda: clockwork("rnn"),
    "clockwork LSTM 1 2 4 8": lambda: clockwork("lstm"),
    "dilated RNN 1 2 4": lambda: dilated("rnn"),
    "dilated GRU 1 2 4": lambda: dilated("gru"),
    "dilated LSTM 1 2 4": lambda: dilated("lstm"),
    "every 4 on an LSTM": every,
    "hierarchy, period 4": hierarchy,
    "norm LSTM": lambda: by_step(dnirnn.NormLSTM(INPUT, HIDDEN), True),
    "norm LSTM, zoneout": lambda: by_step(
        dnirnn.NormLSTM(INPUT, HIDDEN, zoneout_h=0.05, zoneout_c=0.5), True
    ),
    "phased LSTM": lambda: by_step(dnirnn.PhasedLSTM(INPUT, HIDDEN), True),
    "fast-slow 2": lambda: by_step(dnirnn.FastSlow(INPUT, HIDDEN, HIDDEN), True),
    "HM-LSTM, 3 layers": lambda: by_step(dnirnn.HMLSTM(INPUT, HIDDEN), True),
    "skip LSTM": lambda: by_step(dnirnn.Skip(dnirnn.LSTM(INPUT, HIDDEN)), True),
}


def point(name: str, steps: int, seconds: float) -> dict:
    """Forward with backward, gradients None before each call.

    flops: of the loop's matrix products, so that what no implementation could pass is known.
    """
    torch.manual_seed(0)
    peer = PEERS[name]()
    x = torch.randn(steps, BATCH, INPUT)
    grad = torch.randn(steps, BATCH, peer.core.output_size)

    def run(outputs: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def both() -> None:
            for parameter in peer.core.parameters():
                parameter.grad = None
            outputs(x).backward(grad)

        return both

    def ours(x: Tensor) -> Tensor:
        return peer.core(x, peer.core.initial_state(BATCH))[0]

    def in_bfloat16(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours(x).float()

    with FlopCounterMode(display=False) as counter:
        run(peer.loop)()
    sides = {"ours": ours, "loop": peer.loop, "bfloat16": in_bfloat16}
    times = alternate({side: run(outputs) for side, outputs in sides.items()}, seconds)
    return {
        "stack": name,
        "steps": steps,
        "fused": peer.fused,
        **{f"{side}_ms": 1e3 * value for side, value in times.items()},
        "vs_loop": times["loop"] / times["ours"],
        "bfloat16_vs_float32": times["ours"] / times["bfloat16"],
        "flops": counter.get_total_flops(),
    }
