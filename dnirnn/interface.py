"""The cut between two chunks, and the one backward pass that serves every cut."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dnirnn.boundary import Interface
from dnirnn.checks import check_sizes, shown
from dnirnn.estimators import ZeroGradient
from dnirnn.estimators.base import as_held, swapped, tensors_of
from dnirnn.loss import unit_of


def ready(cut: Interface) -> Interface:
    """The cut, with a place for what its estimator keeps."""
    return cut if cut.kept is not None else cut._replace(kept={}, held=tensors_of(cut.estimator))


def asked(cut: Interface, synthetic: Tensor | None = None) -> Interface:
    """The cut with what its estimator injects; synthetic: that, where the core computed it."""
    cut = ready(cut)
    known = None if synthetic is None else cut.crossing(synthetic)
    return cut._replace(synthetic=cut.estimator.inject(cut) if known is None else known)


def make_probe(
    *shape: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Zeros that require grad, for an Interface's probe."""
    return torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)


def guard(output: Tensor, probe: Tensor) -> None:
    """Sees to it that gradients reach ``output`` by :func:`backward`, with the probe's interface.

    Any other backward pass leaves the synthetic gradients out: RuntimeError; a ``torch.autograd.grad``
    is warned of, unless it asks for the probe's own.
    """

    def check(_: Tensor) -> None:
        if getattr(probe, "reached", False):
            return
        node = torch.autograd.graph.get_gradient_edge(probe).node
        try:
            whole = torch._C._will_engine_execute_node(node)
        except RuntimeError:  # the probe's gradient is what is asked for
            return
        if whole:
            raise RuntimeError(OTHER_BACKWARD)
        warnings.warn(
            "torch.autograd.grad, or backward(inputs=...), went through a cut: no synthetic gradient is"
            " in what it returns. dnirnn.backward(loss, interfaces) adds those of the cuts to .grad",
            stacklevel=2,
        )

    output.register_hook(check)


OTHER_BACKWARD = (
    "a backward pass went through a cut whose interface was not given to dnirnn.backward, so no"
    " synthetic gradient was sent and no estimator fitted. In the place of loss.backward() write"
    " dnirnn.backward(loss, interfaces), with the interfaces of every call that the loss depends on;"
    " checkpoint with use_reentrant=False; or take dnirnn.ZeroGradient() as the estimator, for plain"
    " truncation"
)


def backward(
    loss: Tensor,
    interfaces: Sequence[Interface],
    unit: float | None = None,
    *,
    reduction: str | None = None,
    micro_batches: int = 1,
    scaler: torch.amp.GradScaler | None = None,
) -> dict[str, Tensor]:
    """One backward pass: the loss's gradient and the synthetic gradients, then the regressions.

    Stands where ``loss.backward()`` stood. Adds to the .grad of the core's parameters the gradient
    of ``loss`` plus, for every cut, synthetic[n] carried back through chunk n; and to the .grad of
    every estimator's parameters the gradient of its regression on the bootstrapped targets
    (the loss's gradient within the chunk plus discount * estimator(sent[n]) carried back through it).
    What a core adds itself (``Core.add_auxiliary_loss``) is a part of the loss, times ``unit``.

    interfaces: those of every call that ``loss`` depends on, each once.
    reduction: "sum" where ``loss`` is summed over the steps and rows of a call, "mean" where it is
        their mean; of several calls, the sum of such means. None: "sum", with a warning where the
        loss is seen to be a mean.
    unit: in its place, for other losses: the factor by which ``loss`` multiplies a sequence's own
        loss summed over its steps: 1 / B for a sum over steps and a mean over the batch, 1 / (T B)
        for a mean over both. Injections are multiplied by it and targets divided by it, so that an
        estimator learns the same whatever the batch size.
    micro_batches: calls of equal batch size whose gradients are gathered before an optimizer steps.
        A share of 1 / micro_batches of every gradient is added, the loss's and the estimators'.
    scaler: scales the loss and all gradients, the estimators' too; then ``scaler.step`` takes any
        optimizer, and where a gradient is not finite no estimator's buffer is changed either.

    Returns detached 0-d tensors, without waiting for the device: ``estimator_error`` (half the
    squared error, summed over S, meaned over rows and interfaces), and ``auxiliary_error`` likewise
    where there is an auxiliary task; nothing where no cut has an estimator.

    Estimators whose scale and discount differ, with lambda targets, an auxiliary task or BPLambda
    take further passes through the chunks, before the one that fills .grad.

    Raises TypeError or ValueError naming the argument that does not fit, an interface that was made
    without gradients among them, before anything is computed; and RuntimeError where the loss
    depends on a call with an estimator whose interface was left out.

    Source: Jaderberg et al. 2017, section 2.1 (the update and its bootstrapped target).
    """
    live = check_cuts(loss, interfaces)
    sizes = [steps_of(cut) * cut.end.shape[1] for cut in interfaces]
    unit = unit_of(loss, unit, reduction, sizes, fits=bool(live))
    check_sizes(micro_batches=micro_batches)
    if scaler is not None and not hasattr(scaler, "scale"):
        raise TypeError(f"scaler must be a torch.amp.GradScaler; got {shown(scaler)}")
    loss = with_auxiliary_losses(loss, interfaces, unit)
    # What multiplies the loss beyond what the caller did; the estimators' gradients too.
    factor: float | Tensor = 1.0
    if micro_batches > 1:
        factor = 1 / micro_batches
        loss = loss * factor
    if scaler is not None:
        loss = scaler.scale(loss)
        factor = factor * scaler.scale(torch.ones_like(loss.detach()))
    unit = unit * factor
    tensors = [loss, *(cut.end for cut in live)]
    targets = targets_of(live, tensors, unit)
    probes: list[Tensor] = [cut.probe for cut in live]
    synthetic: list[Tensor] = [cut.synthetic for cut in live]
    for probe in probes:
        probe.reached = True
    torch.autograd.backward(tensors, [None, *(unit * gradient for gradient in synthetic)])
    for probe, target in zip(probes, targets):
        if target is not None:
            probe.grad = target

    if not live:
        return {}
    if micro_batches == 1 and scaler is None:
        return fit(live, unit)
    return fit_in_part(live, unit, factor, kept=scaler is not None)


def fit(cuts: Sequence[Interface], unit: float | Tensor) -> dict[str, Tensor]:
    """Fits the estimators of cuts whose probes have their gradients: what ``backward`` returns."""
    errors: dict[str, list[Tensor]] = {}
    for cut in cuts:
        probe: Tensor = cut.probe
        if probe.grad is None:
            raise RuntimeError(
                "nothing came back to a cut: the loss does not depend on what dnirnn.cut returned"
                " first, which the rest of the network must read in the place of h"
            )
        found = as_held(cut.held, lambda: cut.estimator.fit(cut, probe.grad / unit))
        for name, error in found.items():
            errors.setdefault(name, []).append(error)
    return {name: mean(each) for name, each in errors.items()}


def fit_in_part(
    cuts: list[Interface], unit: float | Tensor, factor: float | Tensor, kept: bool
) -> dict[str, Tensor]:
    """``fit``, adding ``factor`` times the gradients.

    kept: whether what is fitted without a gradient stays as it was where a target is not finite.
    """
    held = [entry for cut in cuts for entry in cut.held or tensors_of(cut.estimator)]
    tensors = {id(tensor): tensor for _, _, tensor in held}.values()
    fitted = [t for t in tensors if t.requires_grad]
    buffers = [t for t in tensors if kept and not t.requires_grad]
    before = [buffer.clone() for buffer in buffers]
    gathered = [p.grad for p in fitted]
    for p in fitted:
        p.grad = None
    found = fit(cuts, unit)
    with torch.no_grad():
        for p, gradient in zip(fitted, gathered):
            if p.grad is not None:
                p.grad.mul_(factor)
                p.grad = p.grad if gradient is None else gradient.add_(p.grad)
            else:
                p.grad = gradient
        if buffers:
            probes: list[Tensor] = [cut.probe for cut in cuts]
            good = torch.stack([probe.grad.isfinite().all() for probe in probes]).all()
            for buffer, old in zip(buffers, before):
                buffer.copy_(torch.where(good, buffer, old))
    return found


def check_cuts(loss: Tensor, interfaces: Sequence[Interface]) -> list[Interface]:
    """The interfaces with an estimator, or an error that says what does not fit."""
    check_scalar(loss)
    # An Interface is a tuple itself.
    if isinstance(interfaces, Interface) or not isinstance(interfaces, (list, tuple)):
        raise TypeError(
            "interfaces must be a list, such as Truncated returns; got"
            f" {type(interfaces).__name__}"
        )
    live = []
    for cut in interfaces:
        check_interface(cut, "interfaces")
        if cut.synthetic is not None:
            if swapped(cut.held) and not all(t.is_leaf for _, _, t in cut.held):
                raise ValueError(
                    "interfaces has one whose estimator was given tensors that are computed from"
                    " others (torch.func.functional_call): give it leaves, whose .grad is added to"
                )
            live.append(ready(cut))
        elif not isinstance(cut.estimator, ZeroGradient):
            raise ValueError(
                "interfaces has one of a call made without gradients: under torch.no_grad, or in a"
                " checkpoint with use_reentrant=True (write use_reentrant=False)"
            )
    if len({id(cut.probe) for cut in live}) < len(live):
        raise ValueError("interfaces has one of them twice: give each once")
    return live


def check_scalar(loss: Tensor) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a scalar tensor; got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar; got shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("loss must have a gradient; got one that requires none")


def check_interface(cut: Interface, name: str = "interface") -> None:
    if not isinstance(cut, Interface):
        raise TypeError(f"{name} must be of dnirnn.Interface; got {type(cut).__name__}")


def steps_of(cut: Interface) -> int:
    return 1 if cut.chunks is None else cut.chunks.steps


def mean(errors: list[Tensor]) -> Tensor:
    return errors[0] if len(errors) == 1 else torch.stack(errors).mean()


def with_auxiliary_losses(loss: Tensor, interfaces: Sequence[Interface], unit: float) -> Tensor:
    """The loss with what the cores themselves add to it."""
    losses = [cut.auxiliary_loss for cut in interfaces if cut.auxiliary_loss is not None]
    return loss + unit * sum(losses) if losses else loss


def targets_of(
    live: list[Interface], tensors: list[Tensor], unit: float | Tensor
) -> list[Tensor | None]:
    """The targets, times unit, of cuts for which those of the injecting pass will not do; else None."""
    own = [as_held(cut.held, lambda: cut.estimator.bootstrap(cut)) for cut in live]
    apart = [i for i, boot in enumerate(own) if boot is not None]
    targets: list[Tensor | None] = [None] * len(live)
    if not apart:
        return targets
    boots: list[Tensor] = [cut.synthetic if boot is None else boot for cut, boot in zip(live, own)]
    sent = [unit * boot for boot in boots]
    found = torch.autograd.grad(
        tensors, [live[i].probe for i in apart], [torch.ones_like(tensors[0]), *sent],
        retain_graph=True, materialize_grads=True,
    )  # fmt: skip
    for i, target in zip(apart, found):
        targets[i] = live[i].estimator.refine(live[i], target, sent[i])
    return targets
