"""Every: a core that ticks once every so many steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dnirnn import ops
from dnirnn.cells.fused import plain_lstm
from dnirnn.checks import check_sizes, check_words
from dnirnn.core import Core, CoreConfig, check_core, resets_to, step, with_t
from dnirnn.lstm import LSTM
from dnirnn.masks import times
from dnirnn.options import option
from dnirnn.stacks.deep import Deep


class Every(Core):
    """Any core, ticking once every ``period`` steps; between ticks its output is held.

    The core ticks at the steps t where (t + 1) is a multiple of ``period``, on what it gathered of
    the ``period`` inputs since its last tick:

        "last"      x_t
        "mean"      (x_{t-period+1} + ... + x_t) / period
        "concat"    [x_{t-period+1}, ..., x_t]

    The output is that of the last tick, zeros before the first. The core's own t counts its ticks.

    The state [B, S] has three parts, of the sizes ``parts``: the core's state; the output that is
    held [O]; what is gathered, nothing, the sum of the inputs [I], or the last period - 1 of them,
    oldest first [(period - 1) I]. In one call all ticks go through the core at once; so they do where
    rows tick at different steps (a t0 or resets of each row's own) if the core is a dnirnn.LSTM of
    one layer, on the CPU, and "last".

    core: reads I inputs; for "concat" its input_size is period * I.
    period: at least 1.
    gather: "last", "mean" or "concat".

    Raises TypeError where ``core`` is no Core, and ValueError for a period below 1, another gather,
    or an input_size that is no multiple of the period for "concat".

    Source: the slow core of a hierarchy, as in Jaderberg et al. 2017, section 3.2 ("last", with the
    period T); El Hihi and Bengio 1995.
    """

    reads_t = True

    def __init__(self, core: Core, period: int, gather: str = "last"):
        super().__init__()
        check_core(core=core)
        check_sizes(period=period)
        check_words(("last", "mean", "concat"), gather=gather)
        if gather == "concat" and core.input_size % period:
            raise ValueError(
                f"core must have an input_size that is a multiple of the period, {period};"
                f" got {core.input_size}"
            )
        self.core, self.period, self.gather = core, period, gather
        self.input_size = core.input_size // (period if gather == "concat" else 1)
        self.output_size = core.output_size
        kept = {"last": 0, "mean": 1, "concat": period - 1}[gather] * self.input_size
        self.parts = [core.state_size, core.output_size, kept]
        self.state_size = sum(self.parts)

    def initial_state(self, batch_size: int) -> Tensor:
        inner = self.core.initial_state(batch_size)
        return with_t(torch.cat([inner, inner.new_zeros(batch_size, sum(self.parts[1:]))], 1), 0)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        inner, held, kept = state_BS.split(self.parts, 1)
        ticks = torch.as_tensor((t + 1) % self.period == 0, device=x_BI.device)
        ticks = ticks.expand(len(x_BI))[:, None]
        reads = x_BI
        if self.gather == "mean":
            total = kept + x_BI
            reads, kept = (total / self.period).to(x_BI.dtype), torch.where(ticks, 0, total)
        if self.gather == "concat":
            reads = torch.cat([kept.to(x_BI.dtype), x_BI], 1)
            kept = torch.cat([kept, x_BI], 1)[:, self.input_size :]
        output, ended = step(self.core, reads, inner, t // self.period)
        held = torch.where(ticks, output.to(held.dtype), held)
        state = torch.cat([torch.where(ticks, ended, inner), held, kept], 1)
        return held.to(x_BI.dtype), state

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if reset is not None or not isinstance(t0, int):
            if self.fused_for(x_TBI, reset):
                return self.gated(x_TBI, state_BS, t0, reset)
            return super().forward(x_TBI, state_BS, t0, reset)
        steps = len(x_TBI)
        inner, held, kept = state_BS.split(self.parts, 1)
        first = -(t0 + 1) % self.period
        reads, kept = self.gathered(x_TBI, kept, first)
        outputs = held[None]
        if len(reads):
            ticked, inner = self.core(reads, inner, t0 // self.period)
            outputs = torch.cat([outputs, ticked.to(held.dtype)])
        ticks_so_far = (torch.arange(steps, device=x_TBI.device) + t0 + 1) // self.period
        output = outputs.index_select(0, ticks_so_far - t0 // self.period)
        return output.to(x_TBI.dtype), torch.cat([inner, outputs[-1], kept], 1)

    def fused_for(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        """Whether rows that tick at different steps can go through the operator of gates together."""
        whole = self.gather == "last" and plain_lstm(self.core, reset) and resets_to(self, Every, reset)
        return whole and ops.gated_for(x_TBI)

    def gated(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """forward, with a gate over the core's state that is open at a row's ticks."""
        steps, batch, _ = x_TBI.shape
        inner, held, _ = state_BS.split(self.parts, 1)
        t = times(t0, steps, reset, x_TBI.device).expand(steps, batch)
        ticks = (t + 1) % self.period == 0
        opened = ticks[..., None].to(inner.dtype)
        output, end = ops.gated_lstm(
            x_TBI, inner, None, self.core.weights, ops.UNCUT, open_h=opened, open_c=opened, reset=reset
        )
        # Before a row's first tick or reset of this call its output is what it held.
        anew = ticks if reset is None else ticks | reset
        began = anew.cumsum(0)[..., None] > 0
        output = torch.where(began, output.to(held.dtype), held)
        return output.to(x_TBI.dtype), torch.cat([end[0], output[-1]], 1)

    def gathered(self, x_TBI: Tensor, kept: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """What the ticks read [ticks, B, .], the first at step ``first``; what is kept after."""
        (steps, batch, inputs), period = x_TBI.shape, self.period
        ticks = len(range(first, steps, period))
        if self.gather == "last":
            return x_TBI[first::period], kept
        if self.gather == "mean":
            # kept stands before the first input: the sum of those that this call does not have.
            x = torch.cat([kept[None], x_TBI])
            sizes = [first + 2, *[period] * (ticks - 1), (steps - first - 1) % period]
            sizes = sizes if ticks else [steps + 1]
            sums = torch.stack([part.sum(0) for part in x.split(sizes)])
            return (sums[:ticks] / period).to(x_TBI.dtype), sums[ticks]
        x = torch.cat([kept.view(batch, period - 1, inputs).transpose(0, 1), x_TBI])
        reads = x[first : first + ticks * period].view(ticks, period, batch, inputs)
        reads = reads.transpose(1, 2).reshape(ticks, batch, period * inputs)
        return reads.to(x_TBI.dtype), x[steps:].transpose(0, 1).reshape(batch, -1)

    def extra_repr(self) -> str:
        return f'period={self.period}, gather="{self.gather}"'


@dataclass(frozen=True)
class EveryConfig(CoreConfig, name="every"):
    """an LSTM, and one that reads it every --every steps; their outputs are added"""

    every: int = option(4, "steps from one tick of the slower LSTM to the next", "STEPS", at_least=1)
    gather: str = option(
        "last", "what it reads of the steps since its last tick: the last, their mean, all",
        choices=("last", "mean", "concat"),
    )  # fmt: skip

    def build(self, input_size: int) -> Core:
        width = self.hidden * (self.every if self.gather == "concat" else 1)
        slow = Every(LSTM(width, self.hidden), self.every, self.gather)
        return Deep([LSTM(input_size, self.hidden), slow], residual=True)
