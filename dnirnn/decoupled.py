"""Decoupled: a sequence of modules that need not wait for one another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dnirnn.checks import check_list, check_positive, check_words, shown
from dnirnn.cuts import cut, receive, send
from dnirnn.estimators import GradientEstimator
from dnirnn.interface import Interface, backward

UPDATES = ("lockstep", "unlocked", "random")


class Sent(NamedTuple):
    """A module's last output, with what belongs to it: the targets and contexts of its rows."""

    h: Tensor
    y: Tensor
    context: Tensor | None


class Decoupled(nn.Module):
    """modules[0], cut, modules[1], cut, ..., modules[-1], loss: each module with its optimizer.

    With h_i the output of module i, g_i what estimator i predicts at it, and D_i the derivative of h_i
    by the module's parameters, module i steps along D_i' scale g_i(h_i), the last one along the
    loss's gradient; estimator i is fitted to what module i + 1 sends back to h_i (see
    :func:`dnirnn.cut`), at the activations that this belongs to.

    update: when that is.
        "lockstep": all modules at once, after the loss: one forward and one backward pass.
        "unlocked": module after module, each right after its own forward pass, on what the one
            below it sent for the same rows.
        "random": at each batch, in an order drawn anew, each module with ``probability``. Its input
            is the last output of the module below, with that one's targets and contexts, however old.
    modules: in the order of the forward pass; the first may take anything.
    estimators: one above each module but the last; ZeroGradient: nothing is sent back there.
    loss: loss(output, y), the mean over rows.
    optimizers: one a module, of its parameters; estimator_optimizers likewise, one an estimator.
        None where there is nothing to step. The same one may stand for several.
    synthetic_inputs: one a cut, from the first module's input to the output that the module below the
        cut will have; fitted to that output, with half the squared error, summed over features,
        meaned over rows. Then every module but the first reads these, of the batch at hand: not
        with "lockstep". synthetic_input_optimizers: theirs.

    Draws come from torch's global generator. The last outputs are a part of the state_dict.

    Raises TypeError or ValueError naming the argument that does not fit.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    sections 2.3 (synthetic inputs) and 3.3 (random order).
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        estimators: Sequence[GradientEstimator],
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizers: Sequence[Optimizer | None],
        estimator_optimizers: Sequence[Optimizer | None],
        *,
        update: str = "lockstep",
        probability: float = 1.0,
        synthetic_inputs: Sequence[nn.Module] | None = None,
        synthetic_input_optimizers: Sequence[Optimizer | None] = (),
    ):
        super().__init__()
        check_words(UPDATES, update=update)
        check_positive(probability=probability)
        if not callable(loss):
            raise TypeError(f"loss must be a function of (output, y); got {shown(loss)}")
        check_list("modules", modules, nn.Module)
        check_list("estimators", estimators, GradientEstimator)
        check_list("optimizers", optimizers, (Optimizer, type(None)))
        check_list("estimator_optimizers", estimator_optimizers, (Optimizer, type(None)))
        check_list(
            "synthetic_input_optimizers", synthetic_input_optimizers, (Optimizer, type(None))
        )
        if synthetic_inputs is not None:
            check_list("synthetic_inputs", synthetic_inputs, nn.Module)
        if not modules:
            raise ValueError("modules must be at least one; got none")
        if probability > 1:
            raise ValueError(f"probability must be above 0 and at most 1; got {probability!r}")
        if probability != 1 and update != "random":
            raise ValueError(f"probability goes with update random; got {probability} with {update}")
        if synthetic_inputs is not None and update == "lockstep":
            raise ValueError("synthetic_inputs go with update unlocked or random; got lockstep")
        given = 0 if synthetic_inputs is None else len(modules) - 1
        for name, found, wanted in (
            ("estimators", estimators, len(modules) - 1),
            ("optimizers", optimizers, len(modules)),
            ("estimator_optimizers", estimator_optimizers, len(modules) - 1),
            ("synthetic_inputs", synthetic_inputs or (), given),
            ("synthetic_input_optimizers", synthetic_input_optimizers, given),
        ):
            if len(found) != wanted:
                raise ValueError(
                    f"{name} must be {wanted}, for {len(modules)} modules; got {len(found)}"
                )
        self.parts, self.estimators = nn.ModuleList(modules), nn.ModuleList(estimators)
        self.synthetic_inputs = (
            None if synthetic_inputs is None else nn.ModuleList(synthetic_inputs)
        )
        self.loss, self.update, self.probability = loss, update, probability
        self.optimizers = list(optimizers)
        self.estimator_optimizers = list(estimator_optimizers)
        self.synthetic_input_optimizers = list(synthetic_input_optimizers)
        self.sent: list[Sent | None] = [None] * (len(modules) - 1)

    def forward(self, x: Any) -> Tensor:
        """The network's output: the modules one after the other, nothing cut."""
        for part in self.parts:
            x = part(x)
        return x

    def interfaces(
        self, x: Any, context: Tensor | None = None, *, through: bool = False
    ) -> tuple[Tensor, list[Interface]]:
        """The output, and the interfaces of all cuts, for one :func:`dnirnn.backward`."""
        found = []
        for part, estimator in zip(self.parts, self.estimators):
            x, interface = cut(part(x), estimator, context_for(estimator, context), through=through)
            found.append(interface)
        return self.parts[-1](x), found

    def learn(self, x: Any, y: Tensor, context: Tensor | None = None) -> dict[str, Tensor]:
        """Takes a batch in: steps the modules and estimators whose turn it is.

        x: the first module's input. y: the loss's targets, [B, ...]. context: [B, C], for estimators
        that need one.

        Returns detached 0-d tensors: ``loss``, and ``estimator_error`` meaned over the estimators
        that were fitted; each of those only where there was one.
        """
        if self.update == "lockstep":
            return self.learn_in_lockstep(x, y, context)
        order, turns = torch.arange(len(self.parts)), torch.ones(len(self.parts), dtype=torch.bool)
        if self.update == "random":
            order = torch.randperm(len(self.parts))
            turns = torch.rand(len(self.parts)) < self.probability
        losses, errors = [], []
        for i in order[turns[order]].tolist():
            loss, error = self.learn_module(i, x, y, context)
            losses += [] if loss is None else [loss]
            errors += [] if error is None else [error]
        found = {} if not losses else {"loss": losses[0]}
        return {**found, "estimator_error": torch.stack(errors).mean()} if errors else found

    def learn_in_lockstep(self, x: Any, y: Tensor, context: Tensor | None) -> dict[str, Tensor]:
        output, interfaces = self.interfaces(x, context)
        loss = self.loss(output, y)
        found = backward(loss, interfaces, 1 / len(y))
        together = {id(one): one for one in (*self.optimizers, *self.estimator_optimizers)}
        for optimizer in together.values():
            step(optimizer)
        return {"loss": loss.detach(), **found}

    def learn_module(
        self, i: int, x: Any, y: Tensor, context: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """One module's turn: (the loss, the error of the estimator below), each where there is one."""
        given, below = x, None
        if i > 0:
            received = self.sent[i - 1]
            if self.synthetic_inputs is not None:
                with torch.no_grad():
                    received = Sent(self.synthetic_inputs[i - 1](x), y, context)
            if received is None:
                return None, None
            h, y, context = received
            estimator = self.estimators[i - 1]
            # What is sent back to the input of this turn is caught; nothing is below it.
            given, below = cut(h, estimator, context_for(estimator, context), through=True)
        unit, caught = 1 / len(y), [] if below is None else [below]
        h, loss, error = self.parts[i](given), None, None
        if i < len(self.estimators):
            estimator = self.estimators[i]
            _, interface = cut(h, estimator, context_for(estimator, context))
            send(interface, caught, unit)
            self.sent[i] = Sent(h.detach(), y, context)
            if below is not None and below.probe is not None:
                error = receive(below, unit)
        else:
            loss = self.loss(h, y)
            error = backward(loss, caught, unit).get("estimator_error")
        step(self.optimizers[i])
        if error is not None:
            step(self.estimator_optimizers[i - 1])
        if i < len(self.estimators) and self.synthetic_inputs is not None:
            self.fit_synthetic_input(i, x, h.detach())
        return None if loss is None else loss.detach(), error

    def fit_synthetic_input(self, i: int, x: Any, h: Tensor) -> None:
        assert self.synthetic_inputs is not None
        error = 0.5 * (self.synthetic_inputs[i](x) - h).square().sum() / len(h)
        error.backward()
        step(self.synthetic_input_optimizers[i])

    def get_extra_state(self) -> list:
        return [None if one is None else list(one) for one in self.sent]

    def set_extra_state(self, state: list) -> None:
        self.sent = [None if one is None else Sent(*one) for one in state]

    def extra_repr(self) -> str:
        return f"update={self.update}, probability={self.probability}"


def context_for(estimator: GradientEstimator, context: Tensor | None) -> Tensor | None:
    return context if estimator.needs_context else None


def step(optimizer: Optimizer | None) -> None:
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
