"""SyntheticGradient: a linear map or an MLP that predicts the gradient of the future."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnirnn import ops
from dnirnn.estimators.base import GradientEstimator


class SyntheticGradient(GradientEstimator):
    """A linear map or an MLP with ReLU that predicts the gradient from the state alone.

    With layers W_1..W_D: g(s) = W_D relu(... relu(W_1 s + b_1) ...) + b_D. The regression is half
    the squared error to the bootstrapped target, summed over S, meaned over the rows. The last
    layer starts at zero in weight and in bias, so the first update is that of plain truncation.

    state_size: S of the core.
    hidden: widths of the hidden layers; () is the linear estimator.
    scale: multiplies g where it is injected into the core.
    discount: multiplies g where it enters the bootstrapped target. Where it equals ``scale`` one
        backward pass serves both; where it differs, :func:`dnirnn.backward` runs a second one for
        the targets. With both at 1 the bootstrap feeds on itself and usually diverges.

    What others used: the paper multiplies the synthetic gradient by 0.1 where it is used; the
    koz4k/dni-pytorch script lets that 0.1 enter the target too, where it acts as a discount of 0.1
    per chunk; the BP(lambda) code scales the injection only, and discounts by its own gamma.

    Raises ValueError for sizes below 1 or a scale or discount that is negative or not finite.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    sections 2.1 and 2.2.
    """

    def __init__(
        self,
        state_size: int,
        hidden: Sequence[int] = (),
        scale: float = 0.1,
        discount: float = 0.1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a sequence of widths, () for none; got {hidden!r}")
        sizes = [state_size, *hidden, state_size]
        for name, size in zip(["state_size", *["hidden"] * len(hidden)], sizes):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{name} must be at least 1, an int; got {size!r}")
        for name, value in (("scale", scale), ("discount", discount)):
            if not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number; got {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative; got {value!r}")
        self.state_size = state_size
        self.scale, self.discount = float(scale), float(discount)
        self.layers = nn.ModuleList(
            nn.Linear(i, o, device=device, dtype=dtype) for i, o in zip(sizes, sizes[1:])
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    @property
    def weights(self) -> list[Tensor]:
        """[W_1, b_1, ..., W_D, b_D]: what the fused operator takes."""
        return [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]

    def forward(self, state: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            state = torch.relu(layer(state))
        return self.layers[-1](state)

    def accumulate(self, entered: Tensor, target: Tensor) -> Tensor:
        return ops.accumulate_regression(entered, target, self.weights)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, discount={self.discount}"
