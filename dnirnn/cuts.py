"""A cut anywhere: the interface of time, between any two parts of any network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dnirnn.checks import check_flags, check_positive, check_tensors
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.interface import Interface, asked, check_interface, fit, guard, ready

OF_TIME_ONLY = {
    "dense": "fits at the states within a chunk",
    "trace_decay": "goes over the chunks of a call",
    "auxiliary": "predicts the next boundary of a sequence",
    "needs_jacobian": "takes the chunks' Jacobians",
}


def cut(
    h: Tensor,
    estimator: GradientEstimator,
    context: Tensor | None = None,
    *,
    through: bool = False,
) -> tuple[Tensor, Interface]:
    """Cuts a network at h: (onward, interface), in the middle of any forward pass.

    ``onward`` has h's value and is what the rest of the network reads in h's place. No gradient goes
    through it. Give the interface to :func:`dnirnn.backward`, in one list with all others of the
    same loss, those of :class:`dnirnn.Truncated` included. Then, with g what ``estimator`` predicts
    at h in units of one row's own loss:

        what made h is given                 scale g(h)
        what ``estimator`` is fitted to is   what comes back to ``onward``

    which is the loss's gradient there where nothing above is cut, and otherwise that up to the next
    cuts, and discount times the predictions of those: a chain of estimators learns from its last.

    h: [B, ...], floating point. An estimator of vectors predicts along the last dimension, and every
        vector before it is a row of the regression; one of maps (ConvSyntheticGradient) takes
        [B, C, H, W].
    estimator: may serve several cuts. With ZeroGradient nothing is sent back. What only chunks of
        time have (dense, trace_decay, auxiliary, BPLambda) is refused.
    context: [B, C], what the estimator is conditioned on, of each row beside h: its label (cDNI).
    through: cuts nothing: ``onward`` lets the gradient through, ``estimator`` sends nothing, and is
        fitted to the true gradient. For a warm-up, and to measure estimators by.

    Without gradients (``torch.no_grad``) it is the identity. A float16 or bfloat16 h is predicted
    for, and its gradient gathered, in float32.

    Raises TypeError or ValueError, naming the argument, for an h, estimator or context that do not
    fit, or are on different devices.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    section 2.
    """
    check(h, estimator, context)
    check_flags(through=through)
    half = h.dtype in (torch.float16, torch.bfloat16)
    end = h.float() if half else h
    start = end.detach()
    if not torch.is_grad_enabled():
        return h, Interface(end[None], None, start[None], None, estimator)
    if isinstance(estimator, ZeroGradient):
        onward = h if through else h.detach()
        return onward, Interface(end[None], None, start[None], None, estimator)
    # One zero for all elements: it is read in every pass, and never written.
    zero = torch.zeros((), dtype=end.dtype, device=h.device)
    probe = zero.expand(1, *h.shape).requires_grad_()
    onward = ((end if through else start) + probe.view(h.shape)).to(h.dtype)
    guard(onward, probe)
    if through or not h.requires_grad:
        # What is sent back ends here: in nobody's gradient.
        end = start.detach().requires_grad_()
    contexts = None
    if context is not None:
        # Every vector of a row has the row's context.
        between = (1,) * (h.dim() - 1 - estimator.state_dims)
        each = context.detach().view(len(context), *between, -1)
        each = each.expand(*h.shape[: h.dim() - estimator.state_dims], -1)
        contexts = each.expand(2, *each.shape)
    found = Interface(end[None], None, start[None], probe, estimator, context=contexts)
    return onward, asked(found, torch.zeros_like(found.start) if through else None)


def check(h: Tensor, estimator: GradientEstimator, context: Tensor | None) -> None:
    """Raises TypeError or ValueError for what :func:`cut` does not take."""
    if not isinstance(estimator, GradientEstimator):
        raise TypeError(f"estimator must be a dnirnn estimator; got {type(estimator).__name__}")
    if not isinstance(h, Tensor) or not h.is_floating_point():
        got = getattr(h, "dtype", type(h).__name__)
        raise TypeError(f"h must be a floating-point tensor; got {got}")
    for name, what in OF_TIME_ONLY.items():
        if getattr(estimator, name, False):
            raise ValueError(
                f"estimator must have no {name} at a cut that is none of time: that {what}"
            )
    dims = estimator.state_dims
    if h.dim() <= dims:
        shape = "[B, C, H, W]" if dims == 3 else "[B, ...]"
        raise ValueError(f"h must be {shape}; got shape {tuple(h.shape)}")
    size = getattr(estimator, "state_size", h.shape[-dims])
    if size != h.shape[-dims]:
        raise ValueError(
            f"estimator predicts for {size} features; h has {h.shape[-dims]}, of shape"
            f" {tuple(h.shape)}"
        )
    weight = next(estimator.parameters(), h)
    if weight.device != h.device:
        raise ValueError(f"estimator must be on h's device {h.device}; it is on {weight.device}")
    if estimator.needs_context != (context is not None):
        must = "be given: the estimator needs one" if estimator.needs_context else "not be given"
        raise ValueError(f"context must {must}; got {context if context is None else 'one'}")
    if context is None:
        return
    check_tensors(context=context)
    asked = getattr(estimator, "context_size", context.shape[-1])
    if context.dim() != 2 or context.shape != (len(h), asked):
        raise ValueError(
            f"context must be [{len(h)}, {asked}], a row for each of h; got {tuple(context.shape)}"
        )
    if context.device != h.device:
        raise ValueError(f"context must be on h's device {h.device}; it is on {context.device}")


def send(interface: Interface, below: Sequence[Interface] = (), unit: float = 1.0) -> None:
    """Carries a cut's prediction back at once: what made h need not wait for the loss.

    Adds to every .grad below the cut, down to the next cuts, the gradient of scale g(h), so that an
    optimizer may step right away; :func:`receive` fits the estimators of those next cuts then, and
    that of this one when what is above it has sent in its turn, or when :func:`dnirnn.backward` was
    called with the loss.

    below: the interfaces of the next cuts below, if there are any.
    unit: as of :func:`dnirnn.backward`.
    """
    check_positive(unit=unit)
    check_interface(interface)
    if not isinstance(below, (list, tuple)) or isinstance(below, Interface):
        raise TypeError(f"below must be a list of interfaces; got {type(below).__name__}")
    for lower in below:
        check_interface(lower, "below")
    synthetic = interface.synthetic
    if synthetic is None:
        return
    for lower in below:
        if lower.probe is not None:
            lower.probe.reached = True
    reached = [lower for lower in below if lower.probe is not None]
    targets = None
    interface = ready(interface)
    boot = interface.estimator.bootstrap(interface)
    if boot is not None and reached:
        probes = [lower.probe for lower in reached]
        before = [0 if probe.grad is None else probe.grad.clone() for probe in probes]
        found = torch.autograd.grad(
            interface.end, probes, unit * boot, retain_graph=True, allow_unused=True
        )
        targets = [old if new is None else old + new for old, new in zip(before, found)]
    torch.autograd.backward(interface.end, unit * synthetic)
    if targets is not None:
        for lower, target in zip(reached, targets):
            lower.probe.grad = target if isinstance(target, Tensor) else None


def receive(interface: Interface, unit: float = 1.0) -> Tensor:
    """Fits a cut's estimator to what came back to ``onward``: adds to its .grad.

    The target meets the activations it belongs to, those of the interface. Returns the regression
    error, a detached 0-d tensor; 0 with ZeroGradient. Raises RuntimeError where nothing came back.
    """
    check_positive(unit=unit)
    check_interface(interface)
    if interface.probe is None:
        return interface.start.new_zeros(())
    # The estimator may have stepped since it predicted.
    return fit([interface._replace(kept={})], unit)["estimator_error"]
