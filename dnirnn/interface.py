"""The cut between two chunks, and the one backward pass that serves every cut."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.estimators import GradientEstimator


class Interface(NamedTuple):
    """N stacked cuts of one call, between chunk n and chunk n + 1.

    Chunk n starts from entered[n] + probe[n] and ends in sent[n]. The gradient that sent[n] is given
    in the backward pass is the synthetic gradient; what arrives in probe[n].grad is the
    bootstrapped target of the estimator at entered[n].

    sent: [N, B, S], attached to the graph.
    synthetic: [N, B, S], scale * estimator(sent), in units of one sequence's own loss; zero where
        the sequence ends or a new one starts. None with ZeroGradient.
    entered: [N, B, S], detached.
    probe: [N, B, S], zeros that require grad. None with ZeroGradient.
    terminal: True, or a bool tensor [B]: rows whose sequence ends with the last chunk, for which
        the estimator learns the target zero at sent[-1]. None where no sequence ends.
    bootstrap: [N, B, S], discount * estimator(sent), zero where synthetic is: what enters the
        targets in the place of synthetic. None where the two are equal.
    """

    sent: Tensor
    synthetic: Tensor | None
    entered: Tensor
    probe: Tensor | None
    estimator: GradientEstimator
    terminal: Tensor | bool | None = None
    bootstrap: Tensor | None = None


def backward(loss: Tensor, interfaces: list[Interface], unit: float = 1.0) -> dict[str, Tensor]:
    """One backward pass: the loss's gradient and the synthetic gradients, then the regressions.

    Stands where ``loss.backward()`` stood. Adds to the .grad of the core's parameters the gradient
    of ``loss`` plus, for every cut, synthetic[n] carried back through chunk n; and to the .grad of
    every estimator's parameters the gradient of its regression on the bootstrapped targets
    (the loss's gradient within the chunk plus discount * estimator(sent[n]) carried back through it).

    unit: the factor by which ``loss`` multiplies a sequence's own loss summed over its steps: 1 / B
        for a sum over steps and a mean over the batch, 1 / (T * B) for a mean over both, times any
        loss scale. Injections are multiplied by it and targets divided by it, so that an estimator
        learns the same whatever the batch size.

    Returns detached 0-d tensors, without waiting for the device: ``estimator_error`` (half the
    squared error, summed over S, meaned over rows and interfaces); nothing where no cut has an
    estimator.

    Raises ValueError where ``loss`` is not a scalar or ``unit`` not positive and finite.

    Source: Jaderberg et al. 2017, section 2.1 (the update and its bootstrapped target).
    """
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar; got shape {tuple(loss.shape)}")
    if not 0 < unit < math.inf:
        raise ValueError(f"unit must be positive and finite; got {unit!r}")
    live = [cut for cut in interfaces if cut.synthetic is not None]
    tensors = [loss, *(cut.sent for cut in live)]

    unequal = [cut for cut in live if cut.bootstrap is not None]
    targets: tuple[Tensor, ...] = ()
    if unequal:
        boots = (cut.synthetic if cut.bootstrap is None else cut.bootstrap for cut in live)
        seeds = [torch.ones_like(loss), *(unit * boot for boot in boots)]
        probes = [cut.probe for cut in unequal]
        targets = torch.autograd.grad(tensors, probes, seeds, retain_graph=True)

    torch.autograd.backward(tensors, [torch.ones_like(loss), *(unit * cut.synthetic for cut in live)])
    for cut, target in zip(unequal, targets):
        cut.probe.grad = target

    if not live:
        return {}
    return {"estimator_error": torch.stack([accumulate(cut, unit) for cut in live]).mean()}


def accumulate(cut: Interface, unit: float) -> Tensor:
    """Fits the estimator of a cut whose probe has its gradient: the regression error."""
    size = cut.probe.shape[-1]
    entered, target = cut.entered.reshape(-1, size), cut.probe.grad.reshape(-1, size) / unit
    if cut.terminal is not None:
        ended = cut.sent[-1].detach()
        ended = ended if cut.terminal is True else ended[cut.terminal]
        entered = torch.cat([entered, ended])
        target = torch.cat([target, torch.zeros_like(ended)])
    return cut.estimator.accumulate(entered, target)
