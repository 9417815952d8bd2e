"""AutoScale: injects no more of an estimator's predictions than they have earned."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnirnn.checks import check_sizes, is_number, shown
from dnirnn.estimators.base import EstimatorConfig, GradientEstimator, Setting
from dnirnn.estimators.control import CONTROLS, Control
from dnirnn.options import option


class AutoScale(GradientEstimator):
    """An estimator with its scale measured, not set.

    With G the targets of a fit and g what the estimator predicts of them before it is fitted to them,
    summed over all rows and elements,

        a <- decay a + (1 - decay) <G, g>
        b <- decay b + (1 - decay) <g, g>
        scale = a / b, within [0, 1]; 0 before the first prediction that is not zero

    a / b is the c that makes E |G - c g|^2 smallest: predictions that are noise earn 0, good ones
    1, and those that are too large are shrunk to size. Targets are bootstrapped: a part of what g is
    compared with comes from g itself, one chunk on, and flatters it. So no more of g enters the
    targets than is injected: the discount is that of the estimator times the scale. Where nothing
    was earned the targets are the chunks' own gradients; and with a discount of 1 the scale settles
    where c <g, g> = <dL / ds + c J' g_next, g>, which is at 1 for the true gradient.

    It sleeps where the scale is 0 after ``patience`` fits: then one call of Truncated in ``look_every``
    uses it and fits it, and the others cost what plain truncation costs. It wakes up as soon as the
    scale is positive.

    estimator: any that is fitted; its own ``scale`` is not used, all else of it is. A discount of 1
        takes one backward pass, another one two; with 0 the targets are the next chunk's gradient
        alone, which nothing flatters.
    decay: from 0 to below 1.
    look_every, patience: at least 1.

    The host reads the scale: on a GPU it waits for that, and no CUDA graph is captured.

    Raises TypeError or ValueError naming the argument that does not fit.
    """

    graph_safe = False

    def __init__(
        self,
        estimator: GradientEstimator,
        decay: float = 0.995,
        look_every: int = 16,
        patience: int = 2000,
    ):
        super().__init__()
        if not isinstance(estimator, GradientEstimator) or isinstance(estimator, AutoScale):
            raise TypeError(
                "estimator must be a dnirnn.GradientEstimator with a scale of its own; got"
                f" {type(estimator).__name__}"
            )
        for name in ("auxiliary", "needs_jacobian"):
            if getattr(estimator, name, False):
                raise ValueError(f"estimator must have no {name}; got {shown(estimator)}")
        if next(estimator.parameters(), None) is None:
            raise ValueError(f"estimator must be one that is fitted; got {shown(estimator)}")
        if not is_number(decay) or not 0 <= decay < 1:
            raise ValueError(f"decay must be a number from 0 to below 1; got {shown(decay)}")
        check_sizes(look_every=look_every, patience=patience)
        self.estimator, self.decay = estimator, float(decay)
        self.look_every, self.patience = look_every, patience
        self.take_settings(estimator)
        made = {"device": next(estimator.parameters()).device}
        # a and b, in the precision of which their ratio does not hang.
        self.register_buffer("agreement", torch.zeros(2, dtype=torch.float64, **made))
        self.register_buffer("fits", torch.zeros((), dtype=torch.int64, **made))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, **made))

    @property
    def scale(self) -> float:
        """What the predictions have earned so far, 0 to 1."""
        agreement, size = self.agreement.tolist()
        return min(1.0, max(0.0, agreement / size)) if size else 0.0

    @property
    def discount(self) -> float:
        """What multiplies a prediction where it enters a target."""
        return self.estimator.discount * self.scale

    def is_used(self) -> bool:
        """Whether the call that begins uses it; counts the call."""
        self.calls += 1
        if self.fits < self.patience or self.scale:
            return True
        return int(self.calls) % self.look_every == 0

    def forward(self, state: Tensor, *context: Tensor) -> Tensor:
        return self.estimator(state, *context)

    def accumulate(
        self,
        entered: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Measures first, then fits: the estimator's regression error."""
        beside = () if context is None else (context,)
        with torch.no_grad():
            predicted = self.estimator(entered, *beside).double()
            counted = predicted if weight is None else predicted * weight[:, None]
            found = torch.stack([(counted * target).sum(), (counted * predicted).sum()])
            self.agreement.lerp_(self.sum_over_ranks(found), 1 - self.decay)
            self.fits += 1
        return self.estimator.accumulate(entered, target, *beside, weight=weight)

    def extra_repr(self) -> str:
        return f"decay={self.decay}, look_every={self.look_every}, patience={self.patience}"


CONTEXTS = ("input", "target", "label")


@dataclass(frozen=True)
class PredictorConfig(EstimatorConfig):
    """An estimator that may be conditioned on the coming steps and whose scale may be measured.

    A subclass writes ``make``, which takes the setting, and scale, discount, dense and
    terminal_target as its estimator does.
    """

    fitted = opens = True

    scale: float | str = option(
        0.1,
        "multiplies a synthetic gradient where it is injected into the core; the word auto for what"
        " its predictions earn on targets that it was not yet fitted to, 0 to 1",
        at_least=0,
        words=("auto",),
        may_change=True,
    )
    discount: float | None = option(
        None, "multiplies a synthetic gradient where it enters the predictor's target", at_least=0,
        shown="0.1; 0 with --scale auto, which multiplies it", may_change=True,
    )  # fmt: skip
    context: tuple = option(
        (),
        "what the predictor is conditioned on beside the state, one or more: the next step's input, its target"
        " (what is to be predicted there; zeros where nothing counts), the label of the whole sequence,"
        " of a task that has one",
        choices=CONTEXTS,
        many=str,
        shown="nothing",
    )
    reads: int = option(1, "how many coming steps --context holds", "STEPS", at_least=1)
    dense: bool = option(
        False, "fit the predictor at every step, not at the first of a chunk only"
    )
    trace_decay: float = option(
        0.0,
        "lambda of the predictor's targets, 0 to 1: how much they go by the losses of later chunks"
        " of the same update and not by its own word",
        "FRACTION",
        at_least=0,
    )
    no_terminal_target: bool = option(
        False, "do not teach the predictor that nothing comes after a sequence's end"
    )
    control: str | None = option(
        None,
        "an experiment's control: inject what was predicted for another row of the batch, or noise of"
        " the prediction's norm, in place of the prediction; the predictor learns as it would",
        choices=CONTROLS,
        shown="none: the prediction",
    )

    usual_discount = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        # In one order, so that the same context is the same run.
        context = tuple(name for name in CONTEXTS if name in self.context)
        object.__setattr__(self, "context", context)
        if self.control and getattr(self, "auxiliary", None):
            raise ValueError("--control is of what is predicted: no --auxiliary")
        if self.reads > 1 and not context:
            raise ValueError(f"--reads goes with --context only; got {self.reads}")

    def build(self, setting: Setting) -> GradientEstimator:
        auto = self.scale == "auto"
        usual = 0.0 if auto else self.usual_discount
        made = self.make(
            setting,
            scale=1.0 if auto else self.scale,
            discount=usual if self.discount is None else self.discount,
            dense=self.dense,
            terminal_target=not self.no_terminal_target,
        )
        made = AutoScale(made) if auto else made
        return made if self.control is None else Control(made, self.control)

    def make(self, setting: Setting, **common: Any) -> GradientEstimator:
        raise NotImplementedError(f"{type(self).__name__} must define what it makes")
