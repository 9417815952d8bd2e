"""The exact future: what estimators stand in for, to measure them by, and for small problems."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dnirnn.checks import check_knobs, check_positive, shown
from dnirnn.estimators.base import EstimatorConfig, GradientEstimator, Setting
from dnirnn.interface import Interface, check_interface, check_scalar, with_auxiliary_losses
from dnirnn.options import option


def true_gradients(
    loss: Tensor,
    interface: Interface,
    lookahead: int | None = None,
    discount: float = 1.0,
    unit: float = 1.0,
) -> Tensor:
    """The gradients [N, B, S] of what comes, at the states that the chunks of a call start from.

    With s_n what chunk n starts from, L_m a sequence's own loss within chunk m, W the lookahead:

        G_n = sum over m = n .. n + W - 1 of discount^(m - n) dL_m / ds_n

    Nothing comes from beyond the call, or from beyond a sequence's end: to look W chunks ahead from
    a state, give a call that goes on for W chunks from there. G_(n+1) is what a perfect estimator
    of that discount predicts at sent[n]: the fixed point of the bootstrapped targets.

    The chunks of a call are cut from one another, so G is found by iteration, all chunks at once:
    G <- u + discount J' G_next, W - 1 times from G = u, where u_n = dL_n / ds_n and J_n is the
    Jacobian of chunk n. No .grad is touched, and the graph is kept.

    loss: of that call, summed over its steps, not of several.
    interface: the call's cut, from a Truncated with any estimator but ZeroGradient, not dense.
    lookahead: W, in chunks; None: to the end of the call.
    unit: the factor by which ``loss`` multiplies a sequence's own loss (see ``backward``).

    Raises ValueError where an argument does not fit.
    """
    check_lookahead(lookahead)
    found = by_lookahead(loss, interface, discount, unit)
    *_, last = itertools.islice(found, lookahead)
    return last


def by_lookahead(
    loss: Tensor, interface: Interface, discount: float = 1.0, unit: float = 1.0
) -> Iterator[Tensor]:
    """true_gradients of a lookahead of 1, 2, ... N chunks, one after the other.

    Each takes one more backward pass through the chunks, all of them side by side.
    """
    check_knobs(discount=discount)
    check_positive(unit=unit)
    check_scalar(loss)
    check_interface(interface)
    if interface.probe is None or len(interface.probe) != len(interface.end):
        raise ValueError(
            "interface must have one probe a chunk: from a Truncated whose estimator is neither"
            " ZeroGradient nor dense, such as TrueGradient()"
        )
    sent, probe = interface.end, interface.probe
    loss = with_auxiliary_losses(loss, [interface], unit)
    own = torch.autograd.grad(loss, probe, retain_graph=True, materialize_grads=True)[0] / unit
    found = own
    yield found
    for _ in range(len(sent) - 1):
        coming = torch.cat([found[1:], torch.zeros_like(found[:1])])
        carried = torch.autograd.grad(
            sent, probe, coming, retain_graph=True, materialize_grads=True
        )[0]
        found = own + discount * carried
        yield found


def check_lookahead(lookahead: int | None) -> None:
    good = isinstance(lookahead, int) and not isinstance(lookahead, bool) and lookahead >= 1
    if lookahead is not None and not good:
        raise ValueError(
            f"lookahead must be an int of at least 1, chunks, or None; got {shown(lookahead)}"
        )


class TrueGradient(GradientEstimator):
    """Says the true gradient at every boundary of a call, having looked ahead.

    It has no parameters and fits nothing. A call of T steps is made twice: first, inside
    :meth:`look`, T steps and the L steps after them, then the T steps alone:

        oracle = TrueGradient(lookahead=L // K)
        truncated = Truncated(core, K, oracle)
        oracle.look(lambda: run(x[: T + L], y[: T + L], state))       # -> loss, interfaces
        backward(*run(x[:T], y[:T], state))

    lookahead, discount: as in :func:`true_gradients`. With None, the end of the sequence in sight
        and discount 1, the core's gradients are those of backpropagation through all of time.
    scale: multiplies the gradient where it is injected.
    """

    graph_safe = False

    def __init__(self, lookahead: int | None = None, scale: float = 1.0, discount: float = 1.0):
        super().__init__()
        check_knobs(scale=scale, discount=discount)
        check_lookahead(lookahead)
        self.lookahead = lookahead
        self.scale, self.discount = float(scale), float(discount)
        self.gradients: Tensor | None = None

    def look(
        self, run: Callable[[], tuple[Tensor, list[Interface]]], unit: float = 1.0
    ) -> Tensor:
        """Learns, and returns, the true gradients of the call that ``run`` makes.

        run: makes a call of the Truncated that has this estimator: (loss, its interfaces).
        """
        self.gradients = None
        loss, (interface,) = run()
        self.gradients = true_gradients(loss, interface, self.lookahead, self.discount, unit)
        return self.gradients

    def forward(self, state: Tensor) -> Tensor:
        """What was seen at the boundaries of the call at hand; zeros before anything was.

        Raises ValueError where the call has another batch, or more boundaries, than were seen.
        """
        if self.gradients is None:
            return torch.zeros_like(state)
        if self.gradients.shape[1:] != state.shape[1:] or len(self.gradients) < len(state):
            raise ValueError(
                f"the call has boundaries {tuple(state.shape)}; looked at {tuple(self.gradients.shape)}"
            )
        end = torch.zeros_like(self.gradients[:1])
        return torch.cat([self.gradients[1:], end])[: len(state)]

    def accumulate(
        self, entered: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Fits nothing: there is no error."""
        return target.new_zeros(())

    def extra_repr(self) -> str:
        return f"lookahead={self.lookahead}, scale={self.scale}, discount={self.discount}"


@dataclass(frozen=True)
class TrueGradientConfig(EstimatorConfig, name="true"):
    """it itself: every update looks ahead, at the price of all the steps that it looks at"""

    label = "true gradient"

    lookahead: int | str = option(
        40,
        "how far it looks ahead from a cut, rounded up to whole chunks, or the word sequence for to"
        " the sequence's end",
        "STEPS",
        at_least=1,
        words=("sequence",),
    )
    scale: float = option(
        1.0, "multiplies the gradient where it is injected into the core", at_least=0, may_change=True
    )
    discount: float = option(
        1.0, "multiplies the loss of each further chunk", at_least=0, may_change=True
    )

    def build(self, setting: Setting) -> GradientEstimator:
        steps = self.lookahead
        chunks = None if isinstance(steps, str) else -(-steps // setting.truncation)
        return TrueGradient(chunks, self.scale, self.discount)
