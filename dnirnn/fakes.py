"""What the fused operators return, for tracing: empty tensors of the right shape, dtype and device."""

import torch
from torch import Tensor

# A truncation longer than any sequence: a number, where the length would be another graph of torch's.
UNCUT = 2**31 - 1


def register() -> None:
    """Tells torch of them, once the operators are loaded."""
    for fake in (
        tbptt,
        tbptt_backward,
        gated_lstm,
        gated_lstm_backward,
        lstm_cells,
        lstm_cells_backward,
        masks,
        regression,
    ):
        torch.library.register_fake(f"dnirnn::{fake.__name__}", fake)


def sizes(x: Tensor, weights: list[Tensor], truncation: int) -> tuple[int, ...]:
    """(T, B, I, H, L, K, N) of a call."""
    steps, batch = x.shape[:2]
    inputs = x.shape[2] if x.dim() == 3 else 0  # of symbols
    length, chunks = cut(steps, truncation)
    return steps, batch, inputs, weights[1].shape[1], len(weights) // 4, length, chunks


def cut(steps: int, truncation: int) -> tuple[int, int]:
    """(K, N)."""
    if truncation == UNCUT:  # whatever the length: no graph is to ask
        return steps, 1
    length = min(truncation, steps)
    return length, -(-steps // length)


def tbptt(x, state, probe, weights, estimator, truncation, scale, reset):
    steps, batch, _, hidden, layers, length, chunks = sizes(x, weights, truncation)
    sent = state.new_empty(chunks, *state.shape)
    history = (layers, length, chunks, batch)
    on_gpu = x.device.type == "cuda"
    narrow = x if x.is_floating_point() else weights[0]
    gates = weights[1].shape[0] // hidden
    kept = 1 if gates == 1 else 4
    carried = hidden if gates == 4 or narrow.dtype.itemsize == 2 else 0  # else it is h
    return (
        narrow.new_empty(steps, batch, hidden),
        sent,
        torch.empty_like(sent) if estimator else state.new_empty(0),
        narrow.new_empty(*history, hidden),
        state.new_empty(*history, carried),
        (state if on_gpu else narrow).new_empty(*history, kept, hidden),
        narrow.new_empty(layers - 1, *(history[1:] if on_gpu else (steps, batch)), hidden),
    )


def tbptt_backward(
    grad_output,
    grad_sent,
    x,
    h,
    c,
    gates,
    between,
    weights,
    reset,
    truncation,
    probe_rows,
    with_grad_x,
    with_grad_state,
    with_grad_weights,
):
    steps, batch, inputs, hidden, layers, _, _ = sizes(x, weights, truncation)
    size = layers * hidden * (2 if weights[1].shape[0] == 4 * hidden else 1)  # an LSTM's
    wanted = weights if with_grad_weights else []
    return (
        h.new_empty(steps if with_grad_x else 0, batch, inputs),
        c.new_empty(batch if with_grad_state else 0, size),
        c.new_empty(probe_rows, batch, size),
        [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in wanted],
    )


def gated_lstm(x, state, probe, weights, norm, open_h, open_c, factor, truncation, reset):
    steps, batch, _, hidden, _, length, chunks = sizes(x, weights, truncation)
    kept = (length, chunks, batch)
    normed = (length if norm else 0, chunks, batch)
    return (
        x.new_empty(steps, batch, hidden),
        state.new_empty(chunks, *state.shape),
        state.new_empty(*kept, hidden),
        state.new_empty(*kept, hidden),
        state.new_empty(*kept, 4, hidden),
        state.new_empty(*normed, 4, hidden),
        state.new_empty(*normed, 4),
    )


def gated_lstm_backward(
    grad_output,
    grad_sent,
    x,
    h,
    c,
    gates,
    normed,
    scales,
    weights,
    norm,
    open_h,
    open_c,
    factor,
    reset,
    truncation,
    with_grad_x,
    with_grad_state,
    with_grad_probe,
    with_grad_weights,
    with_grad_open_h,
    with_grad_open_c,
):
    steps, batch, inputs, hidden, _, _, chunks = sizes(x, weights, truncation)

    def like(tensors):
        return [tensor.new_empty(tensor.shape) for tensor in tensors if with_grad_weights]

    def of_gate(wanted, gate):
        return c.new_empty(gate.shape if wanted else (0, batch, hidden))

    return (
        x.new_empty(steps if with_grad_x else 0, batch, inputs),
        c.new_empty(batch if with_grad_state else 0, 2 * hidden),
        c.new_empty(chunks if with_grad_probe else 0, batch, 2 * hidden),
        like(weights),
        like(norm),
        of_gate(with_grad_open_h, open_h),
        of_gate(with_grad_open_c, open_c),
    )


def chain(cells: list[int], weights: list[Tensor]) -> list[tuple[int, list[Tensor]]]:
    """Of each cell of lstm_cells its part and its matrices."""
    found, i, first = [], 0, 0
    while i < len(cells):
        bias = first + 1 + cells[i + 1]
        found.append((cells[i], weights[first:bias]))
        i, first = i + 2 + cells[i + 1], bias + 1
    return found


def lstm_cells(
    x, state, probe, cells, weights, norm, masks, skip, slope, truncation, reset, keep
):
    steps, batch, _ = x.shape
    length, chunks = cut(steps, truncation)
    kept, units = 0, []
    for _, matrices in chain(cells, weights):
        widths = [matrix.shape[1] for matrix in matrices]
        units.append(widths[0])
        kept += sum(widths) + 5 * widths[0] + (4 * widths[0] + 4 if norm else 0)
        if slope is not None:
            kept += sum(widths[1:]) + 3
    if skip:
        kept += state.shape[1] + skip[0].shape[1]
    columns = units[-1] + bool(skip) if slope is None else sum(units) + len(units) - 1
    return (
        x.new_empty(steps, batch, columns),
        state.new_empty(chunks, *state.shape),
        state.new_empty(length * chunks * batch * kept if keep else 0),
    )


def lstm_cells_backward(
    grad_output,
    grad_sent,
    x,
    kept,
    cells,
    weights,
    norm,
    masks,
    skip,
    slope,
    reset,
    truncation,
    with_grad_x,
    with_grad_state,
    with_grad_probe,
    with_grad_weights,
):
    steps, batch, inputs = x.shape
    _, chunks = cut(steps, truncation)
    units = {part: matrices[0].shape[1] for part, matrices in chain(cells, weights)}
    size = 2 * sum(units.values())
    if skip:
        size += weights[-1].shape[0] // 4 + 1
    if slope is not None:
        size += len(units) - 1

    def like(tensors):
        return [tensor.new_empty(tensor.shape) for tensor in tensors if with_grad_weights]

    return (
        x.new_empty(steps if with_grad_x else 0, batch, inputs),
        kept.new_empty(batch if with_grad_state else 0, size),
        kept.new_empty(chunks if with_grad_probe else 0, batch, size),
        like(weights),
        like(norm),
        like(skip),
    )


def masks(t, seed, size, threshold):
    return t.new_empty(*t.shape, size, dtype=torch.bool)


def regression(entered, target, estimator):
    return entered.new_empty(()), [torch.empty_like(weight) for weight in estimator]
