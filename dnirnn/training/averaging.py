"""Average: a moving average of a run's weights, which is what is evaluated and kept as the best."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of parameters, of the same number in every update.

    With p the parameters after update n = 1, 2, ... and a their values at the start,

        a <- a + max(1 - decay, 9 / (9 + n)) (p - a)

    so that it forgets the start at once, and then the past by ``decay`` an update.

    Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; the
    average is exponential, as in TensorFlow's ExponentialMovingAverage.

    Raises ValueError for a decay outside (0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay must be in (0, 1); got {decay!r}")
        self.parameters, self.decay = list(parameters), decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, n: int, bad: float | Tensor = 0.0) -> None:
        """Takes in the parameters after update ``n``; nothing where ``bad``, a number or 0-d, is not 0."""
        share = max(1 - self.decay, 9 / (9 + n)) * (bad == 0)
        steps = torch._foreach_sub(self.parameters, self.values)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(self.values, steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are their averages inside, and to the bit what they were after it."""
        before = [parameter.detach().clone() for parameter in self.parameters]
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, before)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets the parameters to their averages."""
        torch._foreach_copy_(self.parameters, self.values)

    def state_dict(self) -> list[Tensor]:
        return list(self.values)

    @torch.no_grad()
    def load_state_dict(self, values: list[Tensor]) -> None:
        for value, known in zip(self.values, values, strict=True):
            value.copy_(known)
