"""FusedLayers: a core of layers of one cell, whose chunks all go through one operator at once."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import ops
from dnirnn.core import Core, between_resets, resets_to
from dnirnn.embedding import Embedded
from dnirnn.unroll import Chunks, Unrolled


class FusedLayers(Core):
    """A core that runs on :func:`dnirnn.ops.tbptt`.

    A subclass has ``weights``. Where the operator is not built, or not for such tensors, calls go to
    what comes next in the order of its bases.
    """

    @property
    def weights(self) -> list[Tensor]:
        """[weight_ih, weight_hh, bias_ih, bias_hh] of layer 0, then of layer 1, ..."""
        raise NotImplementedError(f"{type(self).__name__} must define its weights")

    def has_operator(self, x_TBI: Tensor | Embedded) -> bool:
        """Whether the operator is there for inputs like these."""
        return ops.fused_for(x_TBI)

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.has_operator(x_TBI):
            return super().forward(x_TBI, state_BS, t0, reset)
        if not resets_to(self, Core, reset):
            if torch.compiler.is_compiling():  # where resets are is not known there
                return super().forward(x_TBI, state_BS, t0, reset)
            initial = self.initial_state(x_TBI.shape[1])
            return between_resets(self.forward, x_TBI, state_BS, initial, reset)
        output, sent, _ = ops.tbptt(x_TBI, state_BS, None, self.weights, [], ops.UNCUT, 1.0, reset)
        return output, sent[0]

    def unroll(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        chunks: Chunks,
        estimator: nn.Module | None = None,
    ) -> Unrolled:
        reset = chunks.reset
        # The operator keeps what a step starts from after a reset, not what arrived there.
        if not self.fused_for(x_TBI, reset) or (chunks.dense and reset is not None):
            return super().unroll(x_TBI, state_BS, probe, chunks, estimator)
        if isinstance(x_TBI, Embedded):
            # Row v: what the input weights make of symbol v.
            w_ih, *others = self.weights
            x, weights = x_TBI.symbols, [F.linear(x_TBI.weight, w_ih), *others]
        else:
            x, weights = x_TBI, self.weights
        given = (x, state_BS, probe, weights)
        if chunks.dense:
            return Unrolled(*ops.tbptt_dense(*given, chunks.truncation))
        if chunks.vjp:
            output, end, vjp = ops.tbptt_vjp(*given, chunks.truncation, reset)
            return Unrolled(output, end, vjp=vjp)
        emitted = getattr(estimator, "weights", [])
        scale = estimator.scale if estimator is not None and emitted else 0.0
        output, end, synthetic = ops.tbptt(*given, emitted, chunks.truncation, scale, reset)
        return Unrolled(output, end, synthetic=synthetic if emitted else None)

    def takes_embedded(self, x: Embedded, reset: Tensor | None) -> bool:
        return ops.takes_symbols(x.weight, x.symbols) and self.fused_for(x, reset)

    def exports_whole(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        return self.fused_for(x_TBI, reset)

    def fused_for(self, x_TBI: Tensor | Embedded, reset: Tensor | None) -> bool:
        """Whether all chunks go through the operator in one call: not where a class of somebody's own
        has another ``forward``, which is to run."""
        own = "forward" in vars(self) or type(self).forward is not FusedLayers.forward
        return not own and self.has_operator(x_TBI) and resets_to(self, Core, reset)
