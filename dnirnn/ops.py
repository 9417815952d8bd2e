"""The fused operators: typed wrappers, shapes for tracing, and what is built."""

import functools
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F

from dnirnn import fakes
from dnirnn.fakes import UNCUT  # noqa: F401


def load_extension():
    """The compiled module, or None (with one warning) where the package was built without it.

    Raises ImportError where it was built for another torch: it would crash or compute nonsense.
    """
    found = importlib.util.find_spec("dnirnn._C")
    if found is None or found.origin is None:
        warnings.warn(
            "dnirnn runs without its fused operators (same results, slower): it was installed"
            " where there was no C++ compiler. `dnirnn doctor` says what to do.",
            stacklevel=3,
        )
        return None
    record = Path(found.origin).with_name("_build.json")
    built_for = json.loads(record.read_text())["torch"] if record.exists() else "an unknown torch"
    if built_for != torch.__version__:
        raise ImportError(
            f"dnirnn's extension was built for torch {built_for}, and this is torch"
            f" {torch.__version__}: build it again with"
            " pip install --no-build-isolation --force-reinstall --no-deps ."
        )
    from dnirnn import _C

    return _C


extension = load_extension()
built = extension is not None

DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
# The cells that tbptt runs, by torch's names.
CELLS = {"cpu": ("LSTM", "GRU", "RNN_TANH"), "cuda": ("LSTM",)}
DEVICES = [
    device
    for device in DTYPES
    if built
    and torch._C._dispatch_has_kernel_for_dispatch_key("dnirnn::tbptt", device.upper())
]


def built_for(device_type: str) -> bool:
    """Whether the LSTM and the estimator have fused operators on "cpu" or "cuda"."""
    return device_type in DEVICES


def fused_for(x: Tensor) -> bool:
    """Whether tbptt runs on tensors like ``x``, as autocast would cast it.

    Not where torch.func or forward-mode differentiation look on: the reference path, which is
    made of torch's operations, serves them.
    """
    kind = x.device.type
    if kind not in DEVICES or in_transform_or_forward_mode():
        return False
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return (torch.get_autocast_dtype(kind) if casts else x.dtype) in DTYPES[kind]


def takes_symbols(weight: Tensor, symbols: Tensor) -> bool:
    """Whether tbptt is to run on a table's rows, of inputs that are rows of ``weight``.

    Not of more symbols than half the steps and rows: the table would cost what it saves.
    """
    few = 2 * len(weight) <= symbols.numel()
    return few and weight.device.type == "cpu" == symbols.device.type and fused_for(weight)


def in_transform() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) is at work."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is not None


def in_transform_or_forward_mode() -> bool:
    if torch.compiler.is_compiling():
        return False
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def gated_for(x: Tensor) -> bool:
    """Whether gated_lstm runs on tensors like ``x``: on the CPU."""
    return x.device.type == "cpu" and fused_for(x)


def sums_by_symbol(weight: Tensor) -> bool:
    """Whether embedding_backward runs on tensors like ``weight``."""
    if torch.compiler.is_compiling() or in_transform_or_forward_mode():
        return False
    kind = weight.device.type
    return has_kernel("embedding_backward", kind) and weight.dtype in DTYPES[kind]


@functools.cache
def has_kernel(name: str, device_type: str) -> bool:
    """Whether an operator is built for "cpu" or "cuda". Some exist only where there is CUDA."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"dnirnn::{name}", device_type.upper())
    except RuntimeError:  # no such operator
        return False


def multiplies_bfloat16() -> bool:
    """Whether tbptt multiplies bfloat16 numbers on this CPU as they are."""
    return built and extension.multiplies_bfloat16()


def describe() -> dict[str, str]:
    """What is built and which path the operators take here, for people."""
    if not built:
        return {"fused operators": "not built", "LSTM, GRU, RNN on the CPU": "reference path (torch)"}
    return {
        "fused operators": f"built for torch {torch.__version__}",
        "LSTM, GRU, RNN on the CPU": f"fused, {extension.vector_path()} vectors,"
        f" {torch.get_num_threads()} thread(s)",
        "bfloat16 on the CPU": "LSTM, GRU, RNN: multiplied in bfloat16, summed in float32"
        if multiplies_bfloat16()
        else "computed in float32: this CPU does not multiply it",
        "LSTM on a GPU": "fused"
        if built_for("cuda")
        else "reference path (torch): no fused operator is built for it",
    }


def tbptt(
    x: Tensor,
    state: Tensor,
    probe: Tensor | None,
    weights: list[Tensor],
    estimator: list[Tensor],
    truncation: int,
    scale: float,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """L layers of an LSTM, GRU or RNN over T steps in N = ceil(T / K) chunks, each cut from the one before.

    Chunk 0 starts from ``state``, chunk n from ``sent[n-1]`` without its gradient. In one line of
    torch, for one chunk: ``output, (h, c) = torch.nn.LSTM(I, H, L)(x, (h, c))``. The cell is the one
    whose weights have so many rows: G H, with G = 4 (LSTM), 3 (GRU, on the CPU), 1 (tanh, on the CPU).

    x: inputs [T, B, I], float32, float64 or bfloat16; on a GPU float16 too. Under autocast it is
        cast. On the CPU also symbols, int64 [T, B]: weights[0] is then a table [V, G H] of that dtype,
        whose row x is what the product of the input and w_ih would be.
    state: [B, S], of an LSTM h_0, c_0, h_1, c_1, ..., else h_0, h_1, ...; float32 where x has 16 bits,
        else x's dtype.
    probe: None; or [N, B, S], added to the state that chunk n starts from; or [T, B, S], added to
        the state that step t starts from. Its gradient is the future gradient of those states: the
        bootstrapped targets, one a chunk or one a step ("dense").
    weights: w_ih [G H, I or H], w_hh [G H, H], b_ih [G H], b_hh [G H] of each layer in turn, of x's
        dtype; beside an x of 16 bits also float32: the matrices are rounded where they are
        multiplied, and their gradients stay float32.
    estimator: [W_1, b_1, ..., W_D, b_D] of an MLP with ReLU; [] for none. No gradient reaches it
        from here.
    truncation: K, at least 1.
    scale: multiplies what the estimator predicts.
    reset: bool [T, B] or None: a row starts a new sequence at that step. Its state becomes zero
        there, after the probe is added, and no gradient crosses.

    Returns output [T, B, H] of x's dtype; sent [N, B, S], the states the chunks end in; synthetic
    [N, B, S] = scale * estimator(sent), not differentiable, empty without an estimator.

    Raises ValueError or TypeError naming the argument that does not fit.
    """
    x, weights = autocast(x, weights)
    return torch.ops.dnirnn.tbptt(
        x, state, probe, weights, estimator, truncation, scale, reset
    )[:3]


def tbptt_dense(
    x: Tensor, state: Tensor, probe: Tensor, weights: list[Tensor], truncation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """tbptt with a probe [T, B, S]: (output, sent, the states [T, B, S] that steps start from).

    The third is not differentiable.
    """
    x, weights = autocast(x, weights)
    output, sent, _, h, c, _, _ = torch.ops.dnirnn.tbptt(
        x, state, probe, weights, [], truncation, 0.0, None
    )
    # The histories are [L, K, N, B, H]; a state is h and c of each layer in turn, of a GRU or RNN h, which
    # c holds unrounded where h is rounded.
    lstm = state.shape[1] == 2 * len(h) * h.shape[-1]
    parts = [h.to(c.dtype), c] if lstm else [c if c.shape[-1] else h]
    states = torch.stack(parts, 4).permute(2, 1, 3, 0, 4, 5)
    return output, sent, states.reshape(-1, *state.shape)[: len(x)]


def tbptt_vjp(
    x: Tensor,
    state: Tensor,
    probe: Tensor | None,
    weights: list[Tensor],
    truncation: int,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Callable[..., tuple[Tensor, Tensor | None]]]:
    """tbptt with a probe [N, B, S]: (output, end, vjp), as dnirnn.unroll.Unrolled has them."""
    wants_x = x.requires_grad
    x, weights = autocast(x, weights)
    output, end, _, h, c, gates, between = torch.ops.dnirnn.tbptt(
        x, state, probe, weights, [], truncation, 0.0, reset
    )

    @torch.no_grad()
    def vjp(
        n: int, of_end: Tensor, of_output: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        rows = slice(n * truncation, (n + 1) * truncation)
        own = x[rows]
        of_chunk = slice(None), slice(len(own)), slice(n, n + 1)
        # By chunk on a GPU, else by time.
        below = between[of_chunk] if between.dim() == h.dim() else between[:, rows]
        kept = [part.contiguous() for part in (h[of_chunk], c[of_chunk], gates[of_chunk], below)]
        to_x, _, start, _ = torch.ops.dnirnn.tbptt_backward(
            of_output, of_end[None], own, *kept, weights, None if reset is None else reset[rows],
            len(own), 1, wants_x, False, False,
        )  # fmt: skip
        return start[0], to_x if wants_x else None

    return output, end, vjp


def gated_lstm(
    x: Tensor,
    state: Tensor,
    probe: Tensor | None,
    weights: list[Tensor],
    truncation: int,
    *,
    norm: list[Tensor] | None = None,
    open_h: Tensor | None = None,
    open_c: Tensor | None = None,
    factor: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM layer with gates over its state and layer normalisation, cut as in tbptt.

    With norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5) over H, and gates k = i, f, g, o:

        a       = W_ih x + W_hh h
        a_k     = gain_k norm(a_k) + b_ih,k + b_hh,k        (without norm: a_k + b_ih,k + b_hh,k)
        i, f, o = sigmoid(a_i, a_f, a_o);  g = factor tanh(a_g)
        c~      = f c + i g
        h~      = o tanh(gain_c norm(c~) + bias_c)          (without norm: o tanh(c~))
        c'      = open_c c~ + (1 - open_c) c;  h' = open_h h~ + (1 - open_h) h

    x, state, probe, truncation, reset: as in tbptt, on the CPU, with L = 1 and the probe
        [N, B, S]. All is computed in float32 where x is bfloat16.
    weights: w_ih [4H, I], w_hh [4H, H], b_ih [4H], b_hh [4H].
    norm: None; or gain [4H], gain_c [H] and bias_c [H].
    open_h, open_c: None: open; or [T or 1, B or 1, H or 1]. Differentiable.
    factor: the same, of g; not differentiable. Like norm, open_h and open_c of the state's dtype.

    Returns output [T, B, H] of x's dtype, and sent [N, B, S], the states the chunks end in.

    Raises ValueError or TypeError naming the argument that does not fit.
    """
    x, weights = autocast(x, weights)
    return torch.ops.dnirnn.gated_lstm(
        x, state, probe, weights, norm or [], open_h, open_c, factor, truncation, reset
    )[:2]


def autocast(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Both as autocast would have them, which leaves float64 as it is; float32 weights beside 16 bits the
    operator casts."""
    kind = x.device.type
    there = torch.is_autocast_enabled(kind) and x.is_floating_point()
    if not there or x.dtype == torch.float64:
        return x, weights
    dtype = torch.get_autocast_dtype(kind)
    if dtype in DTYPES.get(kind, ()) and dtype.itemsize == 2:
        return x.to(dtype), weights
    return x.to(dtype), [weight.to(dtype) for weight in weights]


def clockwork(
    x: Tensor, state: Tensor, weights: list[Tensor], periods: Sequence[int], t0: int
) -> tuple[Tensor, Tensor]:
    """M modules of n units each, a period each, over T steps: dnirnn.Clockwork's equations.

    A module is run over its own ticks alone, the slowest first.

    x: inputs [T, B, I], float32, float64 or bfloat16. Under autocast, x and the weights are cast.
    state: the modules' states, [B, M n], or of LSTMs [B, 2 M n] (h_1, c_1, h_2, ...).
    weights: w_ih [G n, I + (M - m) n], w_hh [G n, n], b_ih [G n], b_hh [G n] of each module m = 1,
        2, ... in turn, the fastest first, with G = 1, or 4 (i, f, g, o); the columns of w_ih are
        those of x, then those of the slower modules.
    t0: steps since the sequence's start at the first step.

    Returns (the outputs [T, B, M n], the state after them).

    Raises ValueError or TypeError for tensors that do not fit.
    """
    x, weights = autocast(x, weights)
    return torch.ops.dnirnn.clockwork(x, state, weights, periods, t0)


def accumulate_regression(entered: Tensor, target: Tensor, weights: list[Tensor]) -> Tensor:
    """Adds to the .grad of an MLP's weights the gradient of its regression; returns the error.

    The error is half the squared difference of MLP(entered) and ``target``, both [R, S], summed
    over S and meaned over R: a detached 0-d tensor. A weight that does not require a gradient gets
    none.
    """
    if not fused_for(entered):
        return reference_regression(entered, target, weights)
    with torch.no_grad():
        error, gradients = torch.ops.dnirnn.regression(entered, target, weights)
        for weight, gradient in zip(weights, gradients):
            if weight.requires_grad:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
    return error


def reference_regression(
    entered: Tensor, target: Tensor, weights: list[Tensor], counts: Tensor | None = None
) -> Tensor:
    """What accumulate_regression computes, by torch's autograd.

    counts: [R], 1 for the rows that count and 0 for the others; None: all do. Where none does,
        error and gradient are zero.
    """

    def predict(value: Tensor) -> Tensor:
        for i in range(0, len(weights), 2):
            value = torch.relu(value) if i else value
            value = F.linear(value, *weights[i : i + 2])
        return value

    return regress(predict, entered, target, weights, counts)


def regress(
    predict: Callable[[Tensor], Tensor],
    entered: Tensor,
    target: Tensor,
    parameters: Iterable[Tensor],
    counts: Tensor | None = None,
) -> Tensor:
    """The same for any prediction, whose parameters' .grad is added to."""
    fitted = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.enable_grad():
        errors = 0.5 * (predict(entered) - target).square().sum(-1)
        if counts is None:
            error = errors.mean()
        else:
            error = (errors * counts).sum() / counts.sum().clamp_min(1)
        if fitted:
            error.backward(inputs=fitted)
    return error.detach()


if built:
    fakes.register()
