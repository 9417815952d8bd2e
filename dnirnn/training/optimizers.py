"""Optimizers, schedules and clipping by name, for the trainer."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from dnirnn.checks import shown

# What is left of a learning rate when a share of the budget is used up.
DECAYS = {
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
    # Constant, and then to zero over the last fifth (Zhai et al. 2022; Hagele et al. 2024).
    "trapezoid": lambda share: min(1.0, 5 * (1 - share)),
}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters, be it kept as a number or as a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def make_optimizer(
    prefix: str, parameters: list[nn.Parameter], name: str, lr: float, options: dict
) -> torch.optim.Optimizer:
    """The torch.optim optimizer of that name; ``prefix`` names its fields.

    Fused where it can, and such that a CUDA graph can hold its step where the parameters are there.
    """
    kind = optimizer_of(prefix, name)
    takes = inspect.signature(kind).parameters
    own = {}
    if "fused" in takes and not (options.get("foreach") or options.get("differentiable")):
        own["fused"] = True
    if "capturable" in takes and parameters[0].device.type == "cuda":
        own["capturable"] = True
    try:
        return kind(parameters, lr=lr, **own | options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{prefix}optimizer_options do not fit {name}: {error}") from None


def optimizer_of(prefix: str, name: str) -> type[torch.optim.Optimizer]:
    """The class of that name in torch.optim; ``prefix`` names the field."""
    kind: Any = getattr(torch.optim, name, None) if isinstance(name, str) else None
    known = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if not known or name in ("Optimizer", "LBFGS", "SparseAdam"):
        raise ValueError(
            f"{prefix}optimizer must be the name of a class in torch.optim that steps on dense"
            f" gradients without a closure, such as Adam; got {shown(name)}"
        )
    return kind


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step leaves everything as it is where its found_inf, a tensor, is 1."""
    return isinstance(optimizer, torch.optim.Adam) and bool(optimizer.defaults["fused"])


def settings(optimizer: torch.optim.Optimizer) -> dict:
    """What an optimizer of one group of parameters is set to, its learning rate included."""
    (group,) = optimizer.param_groups
    return {name: value for name, value in group.items() if name != "params"}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads a state_dict, made on whatever device: how this one's step is computed stays."""
    own = [
        {name: group[name] for name in ("fused", "foreach", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    groups = [{**group, **kept} for group, kept in zip(state["param_groups"], own)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def make_schedule(optimizer: torch.optim.Optimizer, name: str | None, options: dict) -> Any:
    """The torch.optim.lr_scheduler schedule of that name."""
    if name is None:
        if options:
            raise ValueError(f"schedule_options need a schedule; got {options!r}")
        return None
    kind = schedule_of(name)
    try:
        return kind(optimizer, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"schedule_options do not fit {name}: {error}") from None


def schedule_of(name: str) -> type:
    """The class of that name in torch.optim.lr_scheduler."""
    schedules = torch.optim.lr_scheduler
    kind: Any = getattr(schedules, name, None) if isinstance(name, str) else None
    plain = isinstance(kind, type) and issubclass(kind, schedules.LRScheduler)
    refused = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
    if not plain or name in refused:
        raise ValueError(
            "schedule must be the name of a class in torch.optim.lr_scheduler that takes plain"
            f" numbers, such as CosineAnnealingLR; got {shown(name)}"
        )
    return kind


def check_length(schedule: Any, updates: int | None) -> None:
    """Raises ValueError where a schedule that has an end (OneCycleLR) may be stepped past it."""
    end = getattr(schedule, "total_steps", None)
    if end is not None and (updates is None or updates > end):
        given = "none is given" if updates is None else f"got {updates}"
        raise ValueError(
            f"schedule {type(schedule).__name__} ends after total_steps={end} updates: updates must"
            f" be given, at most {end}; {given}"
        )


def scalars_of(state: dict) -> dict:
    """What changes in a schedule: its numbers. The rest comes from its options."""
    plain = (type(None), bool, int, float, str)

    def is_plain(value: Any) -> bool:
        return isinstance(value, plain) or (
            isinstance(value, list) and all(isinstance(item, plain) for item in value)
        )

    return {name: value for name, value in state.items() if is_plain(value)}


def norm_of(gradients: list[Tensor]) -> Tensor | float:
    """The norm of all gradients together; 0.0 where there is none."""
    return nn.utils.get_total_norm(gradients) if gradients else 0.0


def rescale(
    gradients: list[Tensor],
    norm: float | Tensor,
    smallest: float | None,
    largest: float | None,
) -> None:
    """Scales the gradients, whose norm is given, into the range from smallest to largest.

    A norm of 0 stays 0. Nothing waits for the device where the norm is a 0-d tensor there.
    """
    if isinstance(norm, Tensor):
        if gradients and (largest is not None or smallest is not None):
            factor = torch.ones_like(norm)
            if smallest is not None:
                factor = torch.where((norm > 0) & (norm < smallest), smallest / norm, factor)
            if largest is not None:
                factor = torch.where(norm > largest, largest / norm, factor)
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        return
    if largest is not None and norm > largest:
        torch._foreach_mul_(gradients, largest / norm)
    elif smallest is not None and 0 < norm < smallest:
        torch._foreach_mul_(gradients, smallest / norm)


def ramped(update: int, warm_up: int, ramp: int) -> float:
    """The share of a synthetic gradient that the update after so many others injects.

    0 for ``warm_up`` updates, then rising by equal steps over ``ramp`` updates, then 1.
    """
    return min(1.0, max(0, update + 1 - warm_up) / (ramp + 1))
