"""Sequences of unequal lengths: resets inside the operator against what torch offers for them.

torch has PackedSequence, and a loop of cells that zeroes the states of the rows that start anew.
"""

import re
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import dnirnn
from benchmarks.timing import alternate
from dnirnn.data.corpus import builtin

BATCH, STEPS, INPUT, HIDDEN, RESETS = 256, 128, 32, 512, 0.03
Side = Callable[[], Tensor]


def starts_of(reset: Tensor) -> list[tuple[int, int, int]]:
    """(row, first step, step behind the last) of every sequence in a stream with resets [T, B]."""
    found = []
    for b in range(reset.shape[1]):
        at = [0, *(i for i in reset[:, b].nonzero().flatten().tolist() if i), len(reset)]
        found += [(b, first, last) for first, last in zip(at, at[1:])]
    return found


def sides(x: Tensor, reset: Tensor, grad: Tensor) -> dict[str, Side]:
    """Of streams x [T, B, I] that start anew at resets: the outputs [T, B, H], after a backward pass.

    packed: the sequences of all rows as one PackedSequence, made beforehand.
    masked: a loop of nn.LSTMCell.
    """
    module = nn.LSTM(x.shape[2], grad.shape[2], dtype=x.dtype)
    core = dnirnn.LSTM(x.shape[2], grad.shape[2], dtype=x.dtype)
    core.load_state_dict(module.state_dict())
    cell = nn.LSTMCell(x.shape[2], grad.shape[2], dtype=x.dtype)
    for name, parameter in module.named_parameters():
        setattr(cell, name.removesuffix("_l0"), parameter)
    sequences = starts_of(reset)
    parts = [x[first:last, b] for b, first, last in sequences]
    packed = pack_sequence(parts, enforce_sorted=False)
    grads = pack_sequence(
        [grad[first:last, b] for b, first, last in sequences], enforce_sorted=False
    )
    kept = (~reset).to(x.dtype)[..., None]
    zeros = torch.zeros(x.shape[1], grad.shape[2], dtype=x.dtype)

    def fresh(part: nn.Module) -> None:
        for parameter in part.parameters():
            parameter.grad = None

    def ours() -> Tensor:
        fresh(core)
        output, _ = core(x, core.initial_state(x.shape[1]), 0, reset)
        output.backward(grad)
        return output

    def by_packing() -> Tensor:
        fresh(module)
        output, _ = module(packed)
        output.data.backward(grads.data)
        return output.data

    def masked() -> Tensor:
        fresh(cell)
        h, c, outputs = zeros, zeros, []
        for x_t, keep in zip(x, kept):
            h, c = cell(x_t, (h * keep, c * keep))
            outputs.append(h)
        output = torch.stack(outputs)
        output.backward(grad)
        return output

    return {"ours": ours, "packed": by_packing, "masked": masked}


def drawn(steps: int, batch: int) -> Tensor:
    """Resets [T, B], each step with a probability of RESETS."""
    return torch.rand(steps, batch) < RESETS


def of_sentences(steps: int, batch: int) -> Tensor:
    """Resets [T, B] where the sentences of Python's help topics begin, in words, laid end to end."""
    lengths = cycle(len(part.split()) for part in re.split(r"[.!?:]\s", builtin()) if part.split())
    reset = torch.zeros(batch * steps, dtype=torch.bool)
    at = 0
    while at < len(reset):
        reset[at] = True
        at += next(lengths)
    return reset.view(batch, steps).T.contiguous()


STREAMS: dict[str, Callable[[int, int], Tensor]] = {
    f"{RESETS:.0%} resets": drawn,
    "sentences": of_sentences,
}


def point(name: str, seconds: float) -> dict:
    torch.manual_seed(0)
    reset = STREAMS[name](STEPS, BATCH)
    x, grad = torch.randn(STEPS, BATCH, INPUT), torch.randn(STEPS, BATCH, HIDDEN)
    times = alternate(sides(x, reset, grad), seconds, rounds=3)
    return {
        "streams": name,
        "sequences": len(starts_of(reset)),
        **{f"{side}_ms": 1e3 * value for side, value in times.items()},
        "vs_packed": times["packed"] / times["ours"],
        "vs_masked": times["masked"] / times["ours"],
    }
