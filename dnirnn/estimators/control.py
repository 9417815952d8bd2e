"""Control: an experiment's control, which injects what is no prediction of this row."""

import torch
from torch import Tensor

from dnirnn.boundary import Interface
from dnirnn.checks import shown
from dnirnn.estimators.base import GradientEstimator

CONTROLS = ("another-row", "noise")


class Control(GradientEstimator):
    """An estimator that learns as it would, and of whose predictions something else is injected.

    It predicts g_b at the state of row b of a batch of B. Injected, times its scale, is

        another-row: g_(b - 1), the one before it, cyclically: right in size and in all that the rows
            share, and wrong in what is this row's own
        noise: |g_b| e / |e|, with e normal, from torch's global generator: right in norm alone

    Its targets are what they are without a control. What training gains over a control is due to
    what is predicted of a row itself.

    estimator: any that injects scale times what it predicts.
    kind: "another-row" or "noise". The first takes calls of at least two rows.

    Raises TypeError or ValueError naming the argument that does not fit.
    """

    def __init__(self, estimator: GradientEstimator, kind: str = "another-row"):
        super().__init__()
        if not isinstance(estimator, GradientEstimator) or isinstance(estimator, Control):
            raise TypeError(
                f"estimator must be a dnirnn.GradientEstimator; got {type(estimator).__name__}"
            )
        for name in ("auxiliary", "needs_jacobian"):
            if getattr(estimator, name, False):
                raise ValueError(f"estimator must have no {name}; got {shown(estimator)}")
        if next(estimator.parameters(), None) is None:
            raise ValueError(f"estimator must be one that is fitted; got {shown(estimator)}")
        if kind not in CONTROLS:
            raise ValueError(f"kind must be one of {', '.join(CONTROLS)}; got {shown(kind)}")
        self.estimator, self.kind = estimator, kind
        self.take_settings(estimator)

    @property
    def scale(self) -> float:
        return self.estimator.scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self.estimator.scale = scale

    @property
    def discount(self) -> float:
        return self.estimator.discount

    def is_used(self) -> bool:
        return self.estimator.is_used()

    def forward(self, state: Tensor, *context: Tensor) -> Tensor:
        return self.estimator(state, *context)

    def inject(self, cut: Interface) -> Tensor:
        predicted = self.predict(cut)
        if self.kind == "another-row":
            if predicted.shape[1] < 2:
                raise ValueError("a control of another row takes calls of at least 2 rows; got 1")
            other = predicted.roll(1, 1)
        else:
            parts = tuple(range(-self.state_dims, 0))
            noise = torch.randn_like(predicted)
            other = noise * (norm(predicted, parts) / norm(noise, parts))
        return cut.crossing(self.scale * other)

    def bootstrap(self, cut: Interface) -> Tensor:
        return cut.crossing(self.discount * self.predict(cut))

    def accumulate(
        self, entered: Tensor, target: Tensor, *context: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        return self.estimator.accumulate(entered, target, *context, weight=weight)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def norm(value: Tensor, parts: tuple[int, ...]) -> Tensor:
    return value.square().sum(parts, keepdim=True).sqrt()
