"""The end of an update on a GPU in one kernel: norms, clipping, Adam, and the figures for the host."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnirnn import ops

MOST = 56  # tensors of a kernel's arguments


def can_fuse(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Sequence[nn.Parameter]]
) -> bool:
    """Whether finish() may stand for clipping and the optimizers' steps.

    It takes Adam and AdamW without amsgrad or maximize, on at most 56 float32 parameters in rows, on a
    device that the operator is built for.
    """
    tensors = [parameter for part in parameters for parameter in part]
    return (
        ops.has_kernel("finish_update", tensors[0].device.type)
        and len(tensors) <= MOST
        and all(p.dtype == torch.float32 and p.is_contiguous() for p in tensors)
        and all(
            type(one) in (torch.optim.Adam, torch.optim.AdamW)
            and len(one.param_groups) == 1
            and not one.param_groups[0]["amsgrad"]
            and not one.param_groups[0]["maximize"]
            and not any(isinstance(beta, Tensor) for beta in one.param_groups[0]["betas"])
            for one in optimizers
        )
    )


def finish(
    optimizers: Sequence[torch.optim.Optimizer],
    bounds: Sequence[tuple[float | None, float | None]],
    rates: Sequence[Tensor],
    nats: Tensor,
    error: Tensor | None,
    ended: Tensor,
    state: Tensor,
    figures: Tensor,
    place: Tensor,
    bad: Tensor,
) -> None:
    """Brings each part's gradient within its bounds and takes its optimizer's step, as torch would.

    Nothing waits for the device. Where ``bad`` is not 0, or nats or a norm is not finite, parameters,
    optimizers and state stay as they are, and bad becomes 1.

    optimizers, bounds, rates: of the core, and of the estimator if it is fitted by one: see Updater.
        rates: 0-d float32.
    nats, error: 0-d float32, the row's first two figures; error None for 0.
    ended: what ``state`` becomes, of its shape, float32.
    figures: [capacity, 4] float64, whose row ``place`` (an int64 [1], moved on) is written: nats, error,
        and the norms of the core's and of the estimator's gradient.
    bad: 0-d float32.
    """
    parameters, gradients, first, second, steps, counts, settings = [], [], [], [], [], [], []
    for optimizer, (smallest, largest) in zip(optimizers, bounds):
        (group,) = optimizer.param_groups
        fitted = [p for p in group["params"] if p.grad is not None]
        for parameter in fitted:
            kept = optimizer.state[parameter]
            if not kept:
                kept["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                kept["exp_avg"] = torch.zeros_like(parameter)
                kept["exp_avg_sq"] = torch.zeros_like(parameter)
            parameters.append(parameter.detach())
            gradients.append(parameter.grad.contiguous())
            first.append(kept["exp_avg"])
            second.append(kept["exp_avg_sq"])
            steps.append(kept["step"])
        counts.append(len(fitted))
        settings += [
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            float(isinstance(optimizer, torch.optim.AdamW)),
            -1.0 if smallest is None else smallest,
            math.inf if largest is None else largest,
        ]
    if len(optimizers) == 1:
        settings, rates = [*settings, *settings], [*rates, *rates]
    torch.ops.dnirnn.finish_update(
        parameters, gradients, first, second, steps, counts[0], list(rates), settings, nats,
        error, ended.contiguous(), state, figures, place, bad,
    )  # fmt: skip
