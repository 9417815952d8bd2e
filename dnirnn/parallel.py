"""DecoupledParallel: the modules of a Decoupled network in processes of their own."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dnirnn.checks import check_knobs, check_list, check_sizes, shown
from dnirnn.cuts import cut, receive, send
from dnirnn.decoupled import context_for, step
from dnirnn.distributed import reaching
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.interface import Interface, backward, make_probe
from dnirnn.messages import Neighbour


class DecoupledParallel(nn.Module):
    """This rank's modules of a network that is cut between the ranks of torch.distributed.

    Rank r reads the output of rank r - 1, h_(r-1), and is one of

        modules[0], cut, ..., modules[-1], cut     its output goes up, to rank r + 1
        modules[0], cut, ..., modules[-1], loss    the last rank

    Every rank calls :meth:`learn` with the same batches in the same order. At batch n it takes what the
    rank below sent of batch n; sends its own output up; each of its modules steps right after its
    own forward pass, along what the estimator above it predicts (see :class:`dnirnn.Decoupled`); and
    sends the gradient that comes back to its input down, as the target of the estimator there. It
    waits for no target: one that comes later is met by the activations it belongs to, which are kept
    until then, by the batch's number. With ``staleness`` = 0 the updates are those of Decoupled with
    update="unlocked", to the last bit.

    modules: this rank's, in the order of the forward pass. One that is itself cut in time may return
        (h, interfaces), those of its Truncated, whose estimators are fitted on the spot.
    estimators: one above each module but the network's last. The one above the rank's last module is
        fitted to what comes down from the next rank.
    loss: loss(output, y), the mean over rows unless ``unit`` says otherwise; called on the last rank.
    optimizers, estimator_optimizers: one each, or None where there is nothing to step. A tuple of
        them for a module whose cuts in time have an optimizer of their own.
    staleness: how many batches the estimator's targets may be behind: with more than so many of them
        missing the rank waits for the oldest. ``waits`` counts that.
    delay: seconds that every message to this rank takes longer, to see what a slow link costs.
    group: the ranks, in order; None: all there are. Where torch.distributed was not begun, this
        process alone, which has all modules.

    All ranks make it together. :meth:`settle` waits for the targets on their way, before weights are
    saved or compared; :meth:`close` ends it.

    waits, waited: how often and how many seconds it waited, for the rank below or for a target.
    sent_bytes: what it sent. errors: those of the regressions in the last update, 0-d tensors.

    Messages are isend and recv of torch.distributed over gloo, so tensors are on the CPU.

    Raises TypeError or ValueError naming the argument that does not fit, RankLost where a neighbour
    has ended, and RuntimeError where a message is of another batch than the one that is due.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section
    1 and figure 2; the bound on lateness as in Ho et al., More Effective Distributed ML via a Stale
    Synchronous Parallel Parameter Server, NeurIPS 2013.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        estimators: Sequence[GradientEstimator],
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizers: Sequence[Optimizer | tuple[Optimizer, ...] | None],
        estimator_optimizers: Sequence[Optimizer | None],
        *,
        staleness: int = 1,
        delay: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__()
        check_sizes(0, staleness=staleness)
        check_knobs(delay=delay)
        if not callable(loss):
            raise TypeError(f"loss must be a function of (output, y); got {shown(loss)}")
        check_list("modules", modules, nn.Module)
        check_list("estimators", estimators, GradientEstimator)
        check_list("optimizers", optimizers, (Optimizer, tuple, type(None)))
        for several in optimizers:
            if isinstance(several, tuple):
                check_list("optimizers", several, Optimizer)
        check_list("estimator_optimizers", estimator_optimizers, (Optimizer, type(None)))
        if delay >= 3600:
            raise ValueError(f"delay must be seconds, below an hour; got {delay!r}")
        if not modules:
            raise ValueError("modules must be at least one on every rank; got none")
        alone = group is None and not dist.is_initialized()
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)
        self.last = self.rank == self.size - 1
        cuts = len(modules) - self.last
        for name, found, wanted in (
            ("estimators", estimators, cuts),
            ("optimizers", optimizers, len(modules)),
            ("estimator_optimizers", estimator_optimizers, cuts),
        ):
            if len(found) != wanted:
                where = f"rank {self.rank} of {self.size}, {len(modules)} modules"
                raise ValueError(f"{name} must be {wanted} on {where}; got {len(found)}")
        self.parts, self.estimators = nn.ModuleList(modules), nn.ModuleList(estimators)
        self.loss, self.staleness = loss, staleness
        self.optimizers, self.estimator_optimizers = list(optimizers), list(estimator_optimizers)
        self.update, self.waits, self.waited = 0, 0, 0.0
        self.kept: dict[int, tuple[Interface, float]] = {}
        self.errors: list[Tensor] = []
        self.below: Neighbour | None = None
        self.above: Neighbour | None = None
        if self.size == 1:
            return
        members = dist.get_process_group_ranks(group or dist.group.WORLD)
        # Of its own, so that its messages and others' collectives don't meet.
        with reaching():
            self.group = dist.new_group(members, backend="gloo")
        if self.rank > 0:
            self.below = Neighbour(members[self.rank - 1], self.group, delay)
        if not self.last:
            self.above = Neighbour(members[self.rank + 1], self.group, delay)

    def learn(
        self, x: Any, y: Any, context: Tensor | None = None, unit: float | None = None
    ) -> dict[str, Tensor]:
        """Takes the next batch in: an update of every module of this rank.

        x: the network's input; read by the first rank. y: the loss's targets [B, ...], read by the
        last one. context: [B, C], for estimators that need one. unit: by what the loss multiplies a
        row's own loss (see :func:`dnirnn.backward`); None: 1 / B, as a mean does.

        Returns detached 0-d tensors: ``loss`` on the last rank, and ``estimator_error`` meaned over the
        regressions that were done, where there was one.
        """
        self.update += 1
        unit = 1 / len(y) if unit is None else unit
        errors: list[Tensor] = []
        found: dict[str, Tensor] = {}
        given: Any = x
        # What caught the gradient of this module's input, and the cut below it on this rank.
        caught: Any = None
        lower: Any = None
        if self.below is not None:
            given, caught = catch(self.wait(self.below.get, self.update))
        for i, part in enumerate(self.parts):
            h, in_time, interface = part(given), [], None
            if isinstance(h, tuple):
                h, in_time = h
            if i == len(self.parts) - 1 and self.above is not None:
                self.above.put(self.update, h)
            if i < len(self.estimators):
                estimator = self.estimators[i]
                _, interface = cut(h, estimator, context_for(estimator, context))
                errors += pass_back(interface, in_time, caught, unit)
                onward, next_caught = catch(h.detach())
            else:
                onward = next_caught = None
                loss = self.loss(h, y)
                errors += pass_back(loss, in_time, caught, unit)
                found["loss"] = loss.detach()
            optimizer = self.optimizers[i]
            for each in optimizer if isinstance(optimizer, tuple) else (optimizer,):
                step(each)
            if lower is not None:
                errors += self.fit(i - 1, lower, unit, caught.probe.grad)
            elif self.below is not None:
                self.below.put(self.update, caught.probe.grad[0])
            given, caught, lower = onward, next_caught, interface
        if self.above is not None:
            self.kept[self.update] = lower, unit
            errors += [error for target in self.above.arrived() for error in self.take(*target)]
            while len(self.kept) > self.staleness:
                errors += self.take(*self.wait(self.above.get))
        self.errors = errors
        return {**found, "estimator_error": torch.stack(errors).mean()} if errors else found

    def take(self, number: int, target: Tensor) -> list[Tensor]:
        """Fits the estimator below the next rank to a target, at the activations it belongs to."""
        if number not in self.kept:
            raise RuntimeError(f"a target came of update {number}, whose activations are not kept")
        interface, unit = self.kept.pop(number)
        return self.fit(len(self.estimators) - 1, interface, unit, target[None])

    def fit(self, i: int, interface: Interface, unit: float, target: Tensor) -> list[Tensor]:
        if interface.probe is None:
            return []
        interface.probe.grad = target.view(interface.probe.shape).to(interface.probe.dtype)
        error = receive(interface, unit)
        step(self.estimator_optimizers[i])
        return [error]

    def wait(self, get: Callable, *which: int) -> Any:
        began = time.perf_counter()
        found, waited = get(*which)
        if waited:
            self.waits += 1
            self.waited += time.perf_counter() - began
        return found

    def settle(self) -> None:
        """Waits for all targets on their way, and fits to them."""
        while self.kept and self.above is not None:
            self.take(*self.wait(self.above.get))

    @property
    def sent_bytes(self) -> int:
        return sum(one.sent_bytes for one in (self.below, self.above) if one is not None)

    def close(self) -> None:
        """Waits until all messages have arrived, and tells the neighbours that this rank ends."""
        self.settle()
        neighbours = [one for one in (self.below, self.above) if one is not None]
        for one in neighbours:
            one.say_bye()
        for one in neighbours:
            one.thread.join()

    def get_extra_state(self) -> dict:
        if self.kept:
            raise RuntimeError("targets are on their way: call settle() before state_dict()")
        return {"update": self.update}

    def set_extra_state(self, state: dict) -> None:
        self.update = state["update"]

    def extra_repr(self) -> str:
        return f"rank={self.rank} of {self.size}, staleness={self.staleness}"


def catch(h: Tensor) -> tuple[Tensor, Interface]:
    """h to be read by a module, and an interface whose probe catches what comes back to it."""
    probe = make_probe(1, *h.shape, dtype=h.dtype, device=h.device)
    probe.reached = True
    return h + probe[0], Interface(h[None], None, h[None], probe, ZeroGradient())


def pass_back(
    top: Interface | Tensor, in_time: list[Interface], caught: Interface | None, unit: float
) -> list[Tensor]:
    """One backward pass of a module: from the cut above it or the loss, and from its cuts in time.

    Returns the error of the regressions at these, where there are any with an estimator.
    """
    loss: Any = top
    if isinstance(top, Interface) and not in_time:
        send(top, [] if caught is None else [caught], unit)
        loss = None
    elif isinstance(top, Interface):
        loss = sent_back(top, unit)
    found = {} if loss is None else backward(loss, in_time, unit)
    if caught is not None and caught.probe is not None and caught.probe.grad is None:
        caught.probe.grad = torch.zeros_like(caught.probe)
    return [found["estimator_error"]] if found else []


def sent_back(top: Interface, unit: float) -> Tensor:
    """A loss whose gradient at the cut's end is what is predicted there, to the bit."""
    if top.estimator.bootstrap(top) is not None:
        raise ValueError("a module that is cut in time needs an estimator above whose discount is its scale")
    return (top.end * (0.0 if top.synthetic is None else unit * top.synthetic)).sum()
