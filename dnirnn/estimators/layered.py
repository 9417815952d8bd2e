"""Layered: what the estimators that are a feed-forward network have in common."""

import torch
from torch import Tensor, nn

from dnirnn.estimators.base import GradientEstimator

NORM_DECAY = 0.99  # of the running mean square of the targets, a fit


class Layered(GradientEstimator):
    """Layers with ReLU between them, of which the last starts at zero, and g = r times their output.

    layers: from the input's width to the state's.
    norms: a batch norm behind each layer but the last; none: without.
    normalise: r is the targets' running RMS, ``unit``; else 1.
    """

    def set_layers(
        self, layers: list[nn.Module], norms: list[nn.Module], normalise: bool, made: dict
    ) -> None:
        self.layers, self.norms = nn.ModuleList(layers), nn.ModuleList(norms)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        self.normalise = normalise
        if normalise:
            # The mean square of the targets, and the weight of all that is in it (from 0 to 1).
            self.register_buffer("mean_square", torch.zeros(2, **made))

    @property
    def unit(self) -> Tensor:
        """The targets' running RMS, a 0-d tensor; 0 before the first."""
        total, weight = self.mean_square
        return (total / weight.clamp_min(torch.finfo(weight.dtype).tiny)).sqrt()

    def through(self, value: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers[:-1]):
            value = layer(value)
            if len(self.norms):
                value = self.normed(self.norms[i], value)
            value = torch.relu(value)
        return self.layers[-1](value)

    def normed(self, norm: nn.Module, value: Tensor) -> Tensor:
        return norm(value)

    def in_units(self, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(the targets in units of r, which they move on, and r^2), or (the targets, None)."""
        if not self.normalise:
            return target, None
        self.observe(target, weight)
        unit = self.unit
        # Before the first target the unit is 0: what does not count must not become infinite.
        target = target if weight is None else target * weight.view(-1, *(1,) * self.state_dims)
        return target / unit.clamp_min(torch.finfo(unit.dtype).tiny), unit.square()

    def observe(self, target: Tensor, weight: Tensor | None) -> None:
        """Moves the mean square of the targets on, unless no row counts."""
        square, share = target.square(), 1 - NORM_DECAY
        if weight is None:
            mean = self.mean_over_ranks(square.mean())
        else:
            sums = torch.stack([(square.flatten(1).mean(1) * weight).sum(), weight.sum()])
            total, count = self.sum_over_ranks(sums)
            mean = total / count.clamp_min(1)
            share = share * (count > 0).to(count.dtype)
        self.mean_square.lerp_(torch.stack([mean, target.new_ones(())]), share)
