"""The unit of a loss: what it multiplies a sequence's own loss by, and how a mistake in it shows."""

import warnings

from torch import Tensor, float32

from dnirnn.checks import check_positive, shown


def unit_of(
    loss: Tensor, unit: float | None, reduction: str | None, sizes: list[int], fits: bool
) -> float:
    """The unit that was given to :func:`dnirnn.backward`, or that of the reduction.

    sizes: steps times rows of each call. fits: whether an estimator is fitted in these units: then
        a loss that is seen to be in others is warned of.

    Raises TypeError or ValueError naming what does not fit.
    """
    if unit is not None:
        if reduction is not None:
            raise ValueError(f"unit and reduction say the same: give one; got {unit!r}, {reduction!r}")
        check_positive(unit=unit)
        return unit
    if reduction is not None and reduction not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean"; got {shown(reduction)}')
    if fits and is_scaled(loss):
        warnings.warn(
            "the loss looks scaled by a GradScaler, and its scale would be taken for the gradients':"
            " give dnirnn.backward the loss as it is, and scaler=scaler",
            stacklevel=3,
        )
    if reduction == "mean" and sizes:
        if len(set(sizes)) > 1:
            raise ValueError(
                f"reduction of calls of different sizes {sorted(set(sizes))} (steps times rows):"
                " give unit"
            )
        return 1 / sizes[0]
    if reduction is None and fits and max(sizes) > 1 and is_mean(loss):
        warnings.warn(
            "the loss looks like a mean over steps and rows, and is taken as their sum: write"
            ' dnirnn.backward(loss, interfaces, reduction="mean"), or "sum" where it is one',
            stacklevel=3,
        )
    return 1.0


def is_mean(loss: Tensor) -> bool:
    """Whether the loss is seen to be a mean; times or by a number, or with other things added, too.

    A loss of torch keeps its reduction, 1 of a mean.
    """
    nodes = [loss.grad_fn]
    for node in nodes:
        if node is None:
            continue
        name = node.name()
        if name.startswith("MeanBackward") or getattr(node, "_saved_reduction", 0) == 1:
            return True
        if name in ("MulBackward0", "DivBackward0", "AddBackward0", "SubBackward0"):
            nodes += [before for before, _ in node.next_functions]
    return False


def is_scaled(loss: Tensor) -> bool:
    """Whether the last thing done to the loss is a GradScaler's: a 0-d float32 tensor times it."""
    node = loss.grad_fn
    if node is None or node.name() != "MulBackward0":
        return False
    factors = [factor for factor in (node._saved_self, node._saved_other) if factor is not None]
    return any(f.dim() == 0 and f.dtype == float32 and not f.requires_grad for f in factors)
