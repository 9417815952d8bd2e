"""GatedLSTM: an LSTM layer whose state is kept where a gate over it is shut."""

import abc

from torch import Tensor

from dnirnn import ops
from dnirnn.cells.fused import Fused


class GatedLSTM(Fused):
    """One LSTM layer on the operator :func:`dnirnn.ops.gated_lstm`, for its options to be given.

    A subclass has the operator's ``weights`` and ``options``, the same cell as ``step``, and
    ``loop``. The state [B, 2 H] is h, c.
    """

    weights: list[Tensor]

    @abc.abstractmethod
    def options(
        self, state_BS: Tensor, steps: int, t0: int | Tensor, reset: Tensor | None
    ) -> dict[str, Tensor | list[Tensor]]:
        """The operator's norm, open_h, open_c and factor, those that there are."""

    def fused(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        truncation: int,
        t0: int | Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        options = self.options(state_BS, len(x_TBI), t0, reset)
        return ops.gated_lstm(
            x_TBI, state_BS, probe, self.weights, truncation, reset=reset, **options
        )
