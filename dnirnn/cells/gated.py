"""GatedLSTM: an LSTM layer whose state is kept where a gate over it is shut."""

import abc

from torch import Tensor, nn

from dnirnn import ops
from dnirnn.core import Core, resets_to
from dnirnn.unroll import Chunks, Unrolled


class GatedLSTM(Core):
    """One LSTM layer on the operator :func:`dnirnn.ops.gated_lstm`, for its options to be given.

    A subclass has the operator's ``weights`` and ``options``, the same cell as ``step``, and
    ``loop``, which is taken where the operator is not built or not for such a call: on a GPU, and
    where a reset goes back to another state than zero. The state [B, 2 H] is h, c. All chunks of a call go through the operator at once.
    """

    weights: list[Tensor]

    @abc.abstractmethod
    def options(
        self, state_BS: Tensor, steps: int, t0: int | Tensor, reset: Tensor | None
    ) -> dict[str, Tensor | list[Tensor]]:
        """The operator's norm, open_h, open_c and factor, those that there are."""

    @abc.abstractmethod
    def loop(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """forward, a step at a time in torch."""

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.fused_for(x_TBI, reset):
            return self.loop(x_TBI, state_BS, t0, reset)
        options = self.options(state_BS, len(x_TBI), t0, reset)
        output, sent = ops.gated_lstm(
            x_TBI, state_BS, None, self.weights, ops.UNCUT, reset=reset, **options
        )
        return output.to(x_TBI.dtype), sent[0]

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
        options = self.options(state_BS, chunks.steps, chunks.t0, chunks.reset)
        output, end = ops.gated_lstm(
            x_TBI, state_BS, probe, self.weights, chunks.truncation, reset=chunks.reset, **options
        )
        return Unrolled(output.to(x_TBI.dtype), end)

    def fused_for(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        """Whether a call goes through the operator, whose resets go back to zero."""
        return ops.gated_for(x_TBI) and resets_to(self, Core, reset)
