"""The cut between two chunks, and the one backward pass that serves every cut."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.checks import check_sizes, shown
from dnirnn.core import Pull
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.estimators.base import Held, as_held, swapped, tensors_of
from dnirnn.loss import unit_of


class Interface(NamedTuple):
    """N stacked cuts of one call, between chunk n and chunk n + 1.

    Chunk n starts from entered[n] + probe[n] and ends in sent[n]. The gradient that sent[n] is given
    in the backward pass is the synthetic gradient; what arrives in probe[n].grad is the
    bootstrapped target of the estimator at entered[n].

    sent: [N, B, S], attached to the graph.
    synthetic: [N, B, S], scale * estimator(sent), in units of one sequence's own loss; zero where
        the sequence ends or a new one starts. With an auxiliary task, its gradient is added. None
        with ZeroGradient.
    entered: [N, B, S], detached; [T, B, S], one a step, where the estimator is dense.
    probe: as entered, zeros that require grad. None with ZeroGradient.
    terminal: True, or a bool tensor [B]: rows whose sequence ends with the last chunk, for which
        the estimator learns the target zero at sent[-1]. None where no sequence ends.
    bootstrap: [N, B, S], discount * estimator(sent), zero where synthetic is: what enters the
        targets in the place of synthetic. None where the two are equal.
    context: [N + 1, B, C] (dense: [T + 1, B, C]), of the rows of entered, then of sent[-1]. None
        where the estimator needs none.
    pull: pull(n, v) is J_n' v, which lambda targets take chunk by chunk (see Core.unroll_pulling).
        None without a trace_decay.
    ahead: with an auxiliary task, the rows it is fitted on: states [R, S], what the estimator says
        at the boundaries after them, and the rows' weights [R] or None (see GradientEstimator.
        accumulate). None without one, or where no boundary has a next one.
    ends: bool [N, B]: rows whose sequence ends at that boundary. None where none does.
    charge: 0-d, what the core itself adds to the sequences' own losses, summed over steps and rows
        (see ``Core.charge``); attached. None where it adds nothing.
    weight: as entered without its last dimension, 1 for the rows that the estimator is fitted on
        and 0 for the others. None where it is fitted on all.
    steps: time steps of the call.
    predicted: as entered, what the estimator says there, unscaled, where that is known already: its
        regression need not ask again. None where it is not, as at cuts of time.
    held: the estimator's parameters and buffers in the call: those that are fitted, where
        ``torch.func.functional_call`` had put others in their place.
    """

    sent: Tensor
    synthetic: Tensor | None
    entered: Tensor
    probe: Tensor | None
    estimator: GradientEstimator
    terminal: Tensor | bool | None = None
    bootstrap: Tensor | None = None
    context: Tensor | None = None
    pull: Pull | None = None
    ahead: tuple[Tensor, Tensor, Tensor | None] | None = None
    ends: Tensor | None = None
    charge: Tensor | None = None
    weight: Tensor | None = None
    steps: int = 1
    predicted: Tensor | None = None
    held: Held = ()


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
    What a core charges (``Core.charge``) is a part of the loss, times ``unit``.

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
    sizes = [cut.steps * cut.sent.shape[1] for cut in interfaces]
    unit = unit_of(loss, unit, reduction, sizes, fits=bool(live))
    check_sizes(micro_batches=micro_batches)
    if scaler is not None and not hasattr(scaler, "scale"):
        raise TypeError(f"scaler must be a torch.amp.GradScaler; got {shown(scaler)}")
    loss = charged(loss, interfaces, unit)
    # What multiplies the loss beyond what the caller did; the estimators' gradients too.
    factor: float | Tensor = 1.0
    if micro_batches > 1:
        factor = 1 / micro_batches
        loss = loss * factor
    if scaler is not None:
        loss = scaler.scale(loss)
        factor = factor * scaler.scale(torch.ones_like(loss.detach()))
    unit = unit * factor
    tensors = [loss, *(cut.sent for cut in live)]

    apart = [cut for cut in live if cut.bootstrap is not None or cut.pull is not None]
    targets = targets_of(apart, live, tensors, unit) if apart else ()
    jacobians = {id(cut): jacobian(cut) for cut in live if cut.estimator.needs_jacobian}

    for cut in live:
        cut.probe.reached = True
    torch.autograd.backward(tensors, [None, *(unit * cut.synthetic for cut in live)])
    for cut, target in zip(apart, targets):
        cut.probe.grad = target

    if not live:
        return {}
    if micro_batches == 1 and scaler is None:
        return fit(live, unit, jacobians)
    return fit_in_part(live, unit, jacobians, factor, kept=scaler is not None)


def fit(
    cuts: list[Interface], unit: float | Tensor, jacobians: dict[int, Tensor]
) -> dict[str, Tensor]:
    """Fits the estimators of cuts whose probes have their gradients: what ``backward`` returns."""
    errors = [accumulate(cut, unit, jacobians.get(id(cut))) for cut in cuts]
    found = {"estimator_error": mean(errors)}
    ahead = [
        as_held(cut.held, lambda: cut.estimator.ahead.accumulate(*cut.ahead[:2], weight=cut.ahead[2]))
        for cut in cuts
        if cut.ahead is not None
    ]
    return {**found, "auxiliary_error": mean(ahead)} if ahead else found


def fit_in_part(
    cuts: list[Interface],
    unit: float | Tensor,
    jacobians: dict[int, Tensor],
    factor: float | Tensor,
    kept: bool,
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
    found = fit(cuts, unit, jacobians)
    with torch.no_grad():
        for p, gradient in zip(fitted, gathered):
            if p.grad is not None:
                p.grad.mul_(factor)
                p.grad = p.grad if gradient is None else gradient.add_(p.grad)
            else:
                p.grad = gradient
        if buffers:
            good = torch.stack([cut.probe.grad.isfinite().all() for cut in cuts]).all()
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
            live.append(cut)
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


def mean(errors: list[Tensor]) -> Tensor:
    return errors[0] if len(errors) == 1 else torch.stack(errors).mean()


def charged(loss: Tensor, interfaces: Sequence[Interface], unit: float) -> Tensor:
    """The loss with what the cores themselves add to it."""
    charges = [cut.charge for cut in interfaces if cut.charge is not None]
    return loss + unit * sum(charges) if charges else loss


def targets_of(
    cuts: list[Interface], live: list[Interface], tensors: list[Tensor], unit: float | Tensor
) -> list[Tensor]:
    """The targets, times unit, of cuts for which those of the injecting pass will not do."""
    boots = [cut.synthetic if cut.bootstrap is None else cut.bootstrap for cut in live]
    seeds = [torch.ones_like(tensors[0]), *(unit * boot for boot in boots)]
    probes = [cut.probe for cut in cuts]
    found = torch.autograd.grad(tensors, probes, seeds, retain_graph=True, materialize_grads=True)
    boot_of = {id(cut): boot for cut, boot in zip(live, boots)}
    return [
        target if cut.pull is None else lambda_targets(cut, target, unit * boot_of[id(cut)])
        for cut, target in zip(cuts, found)
    ]


def lambda_targets(cut: Interface, target_NBS: Tensor, boot_NBS: Tensor) -> Tensor:
    """The lambda targets, of the targets after one chunk and what they were bootstrapped from."""
    # G_n = (target after one chunk) + discount trace_decay J_n' (G_(n+1) - g(s_(n+1)))
    target = list(target_NBS.unbind())
    for n in reversed(range(len(target) - 1)):
        more = cut.estimator.discount * target[n + 1] - boot_NBS[n]
        target[n] = target[n] + cut.pull(n, cut.estimator.trace_decay * more)
    return torch.stack(target)


def jacobian(cut: Interface) -> Tensor:
    """[N, B, S, S], the derivative of sent[n] by probe[n]; zero over a sequence's end."""
    rows = []
    for i in range(cut.sent.shape[-1]):
        seed = torch.zeros_like(cut.sent)
        seed[..., i].fill_(1)
        rows += torch.autograd.grad(
            cut.sent, cut.probe, seed, retain_graph=True, materialize_grads=True
        )
    found = torch.stack(rows, 2)
    return found if cut.ends is None else found.masked_fill(cut.ends[..., None, None], 0)


def accumulate(cut: Interface, unit: float | Tensor, jacobian: Tensor | None) -> Tensor:
    """Fits the estimator of a cut whose probe has its gradient: the regression error."""
    if cut.probe.grad is None:
        raise RuntimeError(
            "nothing came back to a cut: the loss does not depend on what dnirnn.cut returned first,"
            " which the rest of the network must read in the place of h"
        )
    shape = cut.probe.shape[-cut.estimator.state_dims :]
    entered, target = cut.entered.reshape(-1, *shape), cut.probe.grad.reshape(-1, *shape) / unit
    more = [] if cut.context is None else [cut.context[:-1].flatten(0, -2)]
    weight = None if cut.weight is None else cut.weight.flatten().to(entered.dtype)
    if cut.terminal is not None:
        ended = cut.sent[-1].detach()
        # Rows that did not end weigh nothing: to leave them out, the host would have to know.
        if cut.terminal is not True or weight is not None:
            weight = entered.new_ones(len(entered)) if weight is None else weight
            ends = entered.new_ones(len(ended)) if cut.terminal is True else cut.terminal
            weight = torch.cat([weight, ends.to(entered.dtype)])
        entered = torch.cat([entered, ended])
        target = torch.cat([target, torch.zeros_like(ended)])
        more = [torch.cat([*more, cut.context[-1]])] if more else []
    more += [] if jacobian is None else [jacobian]
    weighed = {} if weight is None else {"weight": weight}
    if cut.predicted is not None and cut.estimator.takes_predicted and not weighed:
        more, weighed = [], {"predicted": cut.predicted.reshape(-1, *shape)}
    return as_held(cut.held, lambda: cut.estimator.accumulate(entered, target, *more, **weighed))
