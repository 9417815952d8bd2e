"""How a core is run over a call that is cut in chunks.

Letters: T steps, B batch, I input, O output, S state, N chunks, K steps a chunk.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

# (n, the gradient of chunk n's end, and of its outputs or None) -> (that of the state it starts from, and
# of its inputs where they require one).
Vjp = Callable[..., tuple[Tensor, Tensor | None]]


class Chunks(NamedTuple):
    """How a call of T steps is cut in time: in N = ceil(T / K) chunks.

    steps, truncation: T, K.
    t0, reset: as of :meth:`Core.forward`; t0 may be the times of all steps.
    final: True, or bool [B]: the rows whose sequence ends with the call.
    open_cuts: p of Truncated's open cuts; None: every cut is closed.
    dense: whether there is a probe a step, not one a chunk.
    vjp: whether each chunk's vector-Jacobian product is wanted by itself.
    """

    steps: int
    truncation: int
    t0: int | Tensor = 0
    reset: Tensor | None = None
    final: bool | Tensor = False
    open_cuts: float | None = None
    dense: bool = False
    vjp: bool = False

    def over_the_cut(self, end: Tensor) -> Tensor:
        """What the next chunk starts from."""
        if self.open_cuts is None:
            return end.detach()
        # The value is that of the end to the bit: what is divided is zero.
        return end.detach() + (end - end.detach()) / self.open_cuts

    def crossing(self, value_NB: Tensor) -> Tensor:
        """What of a prediction [N, B, ...] at the ends crosses the cuts.

        Nothing where a sequence ends or the next chunk starts a new one; of an open cut what it does
        not carry itself, 1 - 1 / p.
        """
        rest = (1,) * (value_NB.dim() - 2)
        if self.open_cuts is not None:
            share = torch.ones_like(value_NB[:, :1])
            share[:-1] = 1 - 1 / self.open_cuts if len(share) > 1 else 1
            value_NB = share * value_NB
        if self.reset is not None:
            # A reset at step 0 cuts this call off from the one before, as that call's `final` already had it.
            starts = self.reset[self.truncation :: self.truncation]
            over = torch.cat([starts, torch.zeros_like(self.reset[:1])])
            value_NB = value_NB.masked_fill(over.view(*over.shape, *rest), 0)
        if self.final is False:
            return value_NB
        last = value_NB[-1:]
        if isinstance(self.final, Tensor):
            last = last.masked_fill(self.final.view(-1, *rest), 0)
        else:
            last = torch.zeros_like(last)
        return torch.cat([value_NB[:-1], last])


class Unrolled(NamedTuple):
    """What a core makes of a call cut in chunks.

    output: [T, B, O]. end: [N, B, S], where the chunks end, attached.
    start: of dense chunks, [T, B, S], what each step starts from without its probe, detached.
    vjp: where it was asked for: vjp(n, v) is (J_n' v, ...), what a gradient v [B, S] of end[n], and
        nothing else, sends back to the state that chunk n starts from, detached. It takes one
        chunk's backward pass. vjp(n, v, u) is of v and of a gradient u [K, B, O] of the chunk's
        outputs together, and the second of what it returns what they send to its inputs
        [K, B, I], or None where these require no gradient.
    synthetic: [N, B, S], estimator.scale * estimator(end), detached, where the core computed it.
    """

    output: Tensor
    end: Tensor
    start: Tensor | None = None
    vjp: Vjp | None = None
    synthetic: Tensor | None = None


def in_chunks(
    core: nn.Module, x_TBI: Tensor, state_BS: Tensor, probe: Tensor | None, chunks: Chunks
) -> Unrolled:
    """``Core.unroll``, by calls of the core: one a chunk, or of dense chunks one a step."""
    K = chunks.truncation
    stride = 1 if chunks.dense else K
    probes = probe.unbind() if probe is not None and chunks.vjp else probe
    parts = x_TBI.split(stride)
    outputs, ends, starts, state = [], [], [], state_BS
    for n, x_KBI in enumerate(parts):
        step = n * stride
        if step and step % K == 0:
            ends.append(state)
            state = chunks.over_the_cut(state)
        starts.append(state)
        start = state if probes is None else state + probes[n]
        reset_KB = None if chunks.reset is None else chunks.reset[step : step + len(x_KBI)]
        t = advance(chunks.t0, chunks.reset, step)
        t = t[: len(x_KBI)] if are_times(t) else t
        output, state = core(x_KBI, start, t, reset_KB)
        outputs.append(output)
    ends.append(state)

    def vjp(
        n: int, of_end: Tensor, of_output: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        assert probes is not None
        behind, seeds = ([ends[n]], [of_end]) if of_output is None else (
            [ends[n], outputs[n]], [of_end, of_output]
        )  # fmt: skip
        to = [probes[n], parts[n]] if parts[n].requires_grad else [probes[n]]
        found = torch.autograd.grad(behind, to, seeds, retain_graph=True, materialize_grads=True)
        return found[0], found[1] if len(to) > 1 else None

    start = torch.stack([state.detach() for state in starts]) if chunks.dense else None
    return Unrolled(torch.cat(outputs), torch.stack(ends), start, vjp if chunks.vjp else None)


def are_times(t0: int | Tensor) -> TypeGuard[Tensor]:
    """Whether t0 is the times of events, [T, B]: floats, where counted steps are ints."""
    return isinstance(t0, Tensor) and t0.is_floating_point()


def check_t0(core: nn.Module, t0: int | Tensor, steps: int, batch: int) -> None:
    if isinstance(t0, int) and not isinstance(t0, bool):
        return
    if are_times(t0):
        if not core.takes_times:
            raise TypeError(
                f"t0 must be an int or a LongTensor [B]: a {type(core).__name__} counts steps, and takes"
                f" no times of events; got {t0.dtype}"
            )
        if tuple(t0.shape) != (steps, batch):
            raise ValueError(
                f"t0 must be [{steps}, {batch}] where it is the times of the steps; got {tuple(t0.shape)}"
            )
        return
    if not isinstance(t0, Tensor) or t0.dtype != torch.int64:
        raise TypeError(f"t0 must be an int or a LongTensor [B]; got {t0!r}")
    if tuple(t0.shape) != (batch,):
        raise ValueError(f"t0 must be an int or [{batch}]; got {tuple(t0.shape)}")


def advance(t0: int | Tensor, reset: Tensor | None, steps: int) -> int | Tensor:
    """The t of the step ``steps`` after the one at ``t0``: counted from the row's last reset.

    Of the times of events, those from that step on.
    """
    if are_times(t0):
        return t0[steps:]
    if reset is None or steps == 0:
        return t0 + steps
    index = torch.arange(steps, device=reset.device)[:, None]
    last = torch.where(reset[:steps], index, -1).amax(0)
    return torch.where(last >= 0, steps - last, t0 + steps)
