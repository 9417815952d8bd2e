"""Fused: a core whose chunks all go through one operator at once, where it is built."""

import abc

from torch import Tensor, nn

from dnirnn import ops
from dnirnn.core import Core, has_hooks, resets_to
from dnirnn.lstm import LSTM
from dnirnn.unroll import Chunks, Unrolled


class Fused(Core):
    """A core that runs on an operator of :mod:`dnirnn.ops`, which resets to zero.

    A subclass has ``fused``, the call, and ``loop``, which is taken where the operator is not built
    or not for such a call: on a GPU, and where a reset goes back to another state than zero. ``step``
    stays the specification of both.
    """

    @abc.abstractmethod
    def fused(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        truncation: int,
        t0: int | Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(outputs [T, B, O], the states [N, B, S] that the chunks end in), by the operator."""

    def loop(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """forward, a step at a time in torch."""
        return Core.forward(self, x_TBI, state_BS, t0, reset)

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.fused_for(x_TBI, reset):
            return self.loop(x_TBI, state_BS, t0, reset)
        output, end = self.fused(x_TBI, state_BS, None, ops.UNCUT, t0, reset)
        return output.to(x_TBI.dtype), end[0]

    def unroll(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        chunks: Chunks,
        estimator: nn.Module | None = None,
    ) -> Unrolled:
        if chunks.dense or chunks.vjp or not self.fused_for(x_TBI, chunks.reset):
            return super().unroll(x_TBI, state_BS, probe, chunks, estimator)
        given = (x_TBI, state_BS, probe, chunks.truncation, chunks.t0, chunks.reset)
        output, end = self.fused(*given)
        return Unrolled(output.to(x_TBI.dtype), end)

    def fused_for(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        """Whether a call goes through the operator, whose resets go back to zero."""
        return ops.gated_for(x_TBI) and resets_to(self, Core, reset)


def plain_lstm(core: Core, reset: Tensor | None) -> bool:
    """Whether ``core`` is a dnirnn.LSTM of one layer and nothing more, so that an operator that has its
    cell may take its place, with such resets."""
    own = isinstance(core, LSTM) and core.num_layers == 1 and not has_hooks(core)
    untouched = (type(core).step, type(core).forward) == (LSTM.step, LSTM.forward)
    return own and untouched and resets_to(core, Core, reset)
