"""ConvSyntheticGradient: convolutions that predict the gradient of feature maps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnirnn.checks import check_flags, check_knobs, check_sequences, check_sizes
from dnirnn.estimators.layered import Layered


class ConvSyntheticGradient(Layered):
    """Convolutions with ReLU that predict the gradient of feature maps from the maps.

    With layers W_1..W_D, each a convolution that keeps height and width:
    g(h) = W_D * relu(... relu(W_1 * h + b_1) ...) + b_D. The regression is half the squared error
    to the target, summed over channels and places, meaned over rows. The last layer starts at zero
    in weight and in bias, so the first update is that of a cut with nothing sent back.

    channels: C of the maps [B, C, H, W].
    hidden: channels of the hidden layers; () is one convolution.
    scale, discount: as of SyntheticGradient. At 1, their default here: a chain of cuts has an end.
    kernel_size: odd.
    context_size: C, of its context of each row, a label (cDNI): as further
        channels, constant over the map. 0: nothing.
    normalise: predicts in units of the targets' running RMS; see SyntheticGradient.
    batch_norm: normalises each hidden layer before its ReLU, over rows and places.

    Raises TypeError or ValueError for sizes below 1, an even kernel_size, a scale or discount that
    is negative or not finite, or a batch_norm without hidden layers.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    section 3.1 (the CNNs).
    """

    state_dims = 3

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int] = (),
        scale: float = 1.0,
        discount: float = 1.0,
        *,
        kernel_size: int = 5,
        context_size: int = 0,
        normalise: bool = False,
        batch_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(channels=channels, kernel_size=kernel_size)
        check_sequences(hidden=hidden)
        check_sizes(0, context_size=context_size)
        check_knobs(scale=scale, discount=discount)
        check_flags(normalise=normalise, batch_norm=batch_norm)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to keep the maps' size; got {kernel_size}")
        if batch_norm and not len(hidden):
            raise ValueError("batch_norm is of hidden layers; got hidden=()")
        self.state_size, self.context_size = channels, context_size
        self.scale, self.discount = float(scale), float(discount)
        self.needs_context = context_size > 0
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = [channels + context_size, *hidden, channels]
        self.set_layers(
            [
                nn.Conv2d(i, o, kernel_size, padding=kernel_size // 2, **made)
                for i, o in zip(widths, widths[1:])
            ],
            [nn.BatchNorm2d(width, **made) for width in (hidden if batch_norm else ())],
            normalise,
            made,
        )

    def forward(self, state: Tensor, context: Tensor | None = None) -> Tensor:
        """The predicted gradient [B, C, H, W] at the maps of that shape, with the context [B, K]."""
        value = self.convolved(state, context)
        return self.unit * value if self.normalise else value

    def convolved(self, state: Tensor, context: Tensor | None) -> Tensor:
        value = state
        if context is not None:
            labels = context.to(state.dtype)[:, :, None, None].expand(-1, -1, *state.shape[2:])
            value = torch.cat([state, labels], 1)
        return self.through(value)

    def accumulate(
        self,
        entered: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """As GradientEstimator's, on maps [R, C, H, W]; with a context [R, K] where one was asked for."""
        target, square = self.in_units(target, weight)
        with torch.enable_grad():
            each = 0.5 * (self.convolved(entered, context) - target).square().flatten(1).sum(1)
            error = each.mean() if weight is None else (each * weight).sum() / weight.sum()
        error.backward()
        return error.detach() if square is None else error.detach() * square

    def extra_repr(self) -> str:
        return f"scale={self.scale}, discount={self.discount}, context_size={self.context_size}"
