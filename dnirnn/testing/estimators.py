"""The laws of a gradient estimator.

Letters: R rows, S state, T steps, B batch, N chunks.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.core import Core
from dnirnn.estimators import BPLambda, GradientEstimator, ZeroGradient
from dnirnn.testing.laws import close, judge
from dnirnn.truncated import Truncated


class Rows(NamedTuple):
    estimator: GradientEstimator
    shape: str
    entered: Tensor
    target: Tensor
    context: tuple[Tensor, ...]


def check_estimator(
    estimator: GradientEstimator, state_size: int, *, context_size: int = 0, seed: int = 0
) -> None:
    """Raises LawsBroken, naming every law that ``estimator`` breaks and where; else returns None.

    estimator: checked as copies in float64; itself left as it is.
    state_size: S, of the states that it predicts for.
    context_size: C, of the contexts of one with needs_context.

    The laws, for 1, 2 and 5 rows: predictions are [..., S] for any leading dimensions and of each
    row alone; ``accumulate`` returns a detached 0-d error, leaves what it is given as it was, works
    under no_grad, and, called twice before a step, adds the same gradient twice; rows of weight 0
    are as if left out; where every weight is 0 nothing is learned; a small step down its gradient
    lowers its error; a state_dict carries everything that it predicts by; what a cut injects is
    ``scale`` times its prediction.

    Raises TypeError for an ``estimator`` that is none or that follows its sequences (BPLambda).
    """
    if not isinstance(estimator, GradientEstimator):
        got = type(estimator).__name__
        raise TypeError(f"estimator must be a dnirnn.GradientEstimator; got {got}")
    if isinstance(estimator, BPLambda):
        raise TypeError(f"estimator must not need the chunks' Jacobians; got {type(estimator).__name__}")
    draw = torch.Generator().manual_seed(seed)
    cases = []
    for rows in (1, 2, 5):
        entered, target = torch.randn(2, rows, state_size, dtype=torch.float64, generator=draw)
        context: tuple[Tensor, ...] = ()
        if estimator.needs_context:
            context = (torch.randn(rows, context_size, dtype=torch.float64, generator=draw),)
        cases.append(Rows(estimator, f"R={rows}, S={state_size}", entered, target, context))
    laws = [
        predictions_are_of_each_row,
        accumulate_returns_an_error_and_no_more,
        weightless_rows_are_left_out,
        without_weight_nothing_is_learned,
        a_step_down_lowers_the_error,
        a_state_dict_carries_all,
    ]
    if not estimator.needs_context:
        laws.append(what_is_injected_is_scaled)
    judge(type(estimator).__name__, laws, cases)


def fresh(case: Rows, moved: bool = True) -> GradientEstimator:
    """A float64 copy; moved: away from where it starts, so that it predicts something."""
    own = copy.deepcopy(case.estimator).double()
    draw = torch.Generator().manual_seed(1)
    if moved:
        with torch.no_grad():
            for parameter in own.parameters():
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return own


def learned(estimator: GradientEstimator) -> dict[str, Tensor]:
    """All that a call of accumulate changes: gradients and buffers."""
    gradients = {
        name: p.grad.clone() for name, p in estimator.named_parameters() if p.grad is not None
    }
    return gradients | {f"buffer {n}": b.clone() for n, b in estimator.named_buffers()}


def predictions_are_of_each_row(case: Rows) -> None:
    estimator = fresh(case).eval()
    with torch.no_grad():
        rows = estimator(case.entered, *case.context)
        more = estimator(case.entered[None], *(part[None] for part in case.context))
        close("predictions of [1, R, S]", more[0], rows)
        if rows.shape != case.entered.shape:
            want, got = list(case.entered.shape), list(rows.shape)
            raise AssertionError(f"predictions must be {want}; got {got}")
        for r in range(len(rows)):
            alone = estimator(case.entered[r : r + 1], *(c[r : r + 1] for c in case.context))
            close("predictions of a row alone", alone[0], rows[r])


def accumulate_returns_an_error_and_no_more(case: Rows) -> None:
    estimator = fresh(case)
    kept = case.entered.clone(), case.target.clone()
    with torch.no_grad():
        error = estimator.accumulate(case.entered, case.target, *case.context)
    if error.dim() or error.requires_grad:
        raise AssertionError(f"accumulate must return a detached 0-d tensor; got {error!r}")
    close("entered, after accumulate,", case.entered, kept[0], 0.0)
    close("targets, after accumulate,", case.target, kept[1], 0.0)
    again, buffers = fresh(case), dict(estimator.named_buffers())
    again.accumulate(case.entered, case.target, *case.context)
    if not buffers:  # one with a state of its own need not add up
        again.accumulate(case.entered, case.target, *case.context)
        for name, parameter in again.named_parameters():
            once = dict(estimator.named_parameters())[name].grad
            if once is not None:
                close(f"gradients of {name}, accumulated twice,", parameter.grad, 2 * once)


def weightless_rows_are_left_out(case: Rows) -> None:
    weight = torch.ones(len(case.entered), dtype=torch.float64)
    weight[1::2] = 0
    counted = weight > 0
    masked, apart = fresh(case), fresh(case)
    error = masked.accumulate(case.entered, case.target, *case.context, weight=weight)
    rest = [part[counted] for part in case.context]
    expected = apart.accumulate(case.entered[counted], case.target[counted], *rest)
    close("errors", error, expected)
    for name, value in learned(apart).items():
        close(name, learned(masked)[name], value)


def without_weight_nothing_is_learned(case: Rows) -> None:
    estimator = fresh(case)
    none = torch.zeros(len(case.entered), dtype=torch.float64)
    error = estimator.accumulate(case.entered, case.target, *case.context, weight=none)
    close("errors", error, torch.zeros_like(error))
    for name, parameter in estimator.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            raise AssertionError(f"{name} got a gradient from rows of weight 0")
    with torch.no_grad():
        close(
            "predictions after it",
            estimator(case.entered, *case.context),
            fresh(case)(case.entered, *case.context),
        )


def a_step_down_lowers_the_error(case: Rows) -> None:
    estimator, moved = fresh(case), fresh(case)
    error = estimator.accumulate(case.entered, case.target, *case.context)
    gradients = {n: p.grad for n, p in estimator.named_parameters() if p.grad is not None}
    size = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    if size < 1e-6:
        return
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name in gradients:
                parameter.sub_(1e-5 / size * gradients[name])
    lower = moved.accumulate(case.entered, case.target, *case.context)
    if not lower < error:
        raise AssertionError(f"the error went from {float(error):.9g} to {float(lower):.9g}")


def a_state_dict_carries_all(case: Rows) -> None:
    estimator, other = fresh(case), fresh(case, moved=False)
    estimator.accumulate(case.entered, case.target, *case.context)
    other.load_state_dict(estimator.state_dict())
    with torch.no_grad():
        found, expected = (one(case.entered, *case.context) for one in (other, estimator))
    close("predictions after load_state_dict", found, expected)


def what_is_injected_is_scaled(case: Rows) -> None:
    class Still(Core):
        """Its state adds up its inputs."""

        def __init__(self, size: int):
            super().__init__()
            self.input_size = self.output_size = self.state_size = size
            self.gain = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
            state = state_BS + self.gain * x_BI
            return state, state

    estimator = fresh(case)
    model = Truncated(Still(case.entered.shape[-1]), 1, estimator)
    _, state, (cut,) = model(case.target[None], case.entered)
    if isinstance(estimator, ZeroGradient) or cut.synthetic is None:
        return
    with torch.no_grad():
        close("injections", cut.synthetic[-1], estimator.scale * estimator(state))
