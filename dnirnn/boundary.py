"""Interface: what a cut is made of."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dnirnn.deprecated import field_of_before
from dnirnn.unroll import Chunks, Vjp


class Interface(NamedTuple):
    """N stacked cuts of one call, between chunk n and chunk n + 1.

    Chunk n starts from start[n] + probe[n] and ends in end[n]. The gradient that end[n] is given
    in the backward pass is the synthetic gradient; what arrives in probe[n].grad is the
    bootstrapped target of the estimator at start[n].

    end: [N, B, S], attached to the graph.
    synthetic: as end, what the estimator injects (``GradientEstimator.inject``), in units of one
        sequence's own loss; zero where the sequence ends or a new one starts. None with ZeroGradient.
    start: [N, B, S], detached; [T, B, S], one a step, of dense chunks.
    probe: as start, zeros that require grad. None with ZeroGradient.
    estimator: what is asked for the other side of the cut (see GradientEstimator).
    chunks: how the call is cut in time. None of :func:`dnirnn.cut`: there start and end are one place.
    context: [N + 1, B, C] (dense: [T + 1, B, C]), of the rows of start, then of end[-1]. None
        where the estimator needs none.
    vjp: the chunks' vector-Jacobian products (see :class:`dnirnn.unroll.Unrolled`). None where the
        estimator needs none.
    auxiliary_loss: 0-d, what the core itself adds to the sequences' own losses, summed over steps and
        rows (see ``Core.add_auxiliary_loss``); attached. None where it adds nothing.
    kept: a dict, what the estimator keeps from one question to the next.
    held: the estimator's parameters and buffers in the call: those that are fitted, where
        ``torch.func.functional_call`` had put others in their place.
    """

    end: Tensor
    synthetic: Tensor | None
    start: Tensor
    probe: Tensor | None
    estimator: nn.Module
    chunks: Chunks | None = None
    context: Tensor | None = None
    vjp: Vjp | None = None
    auxiliary_loss: Tensor | None = None
    kept: Any = None
    held: Sequence = ()

    def __getattr__(self, name: str) -> Any:
        return field_of_before(self, name)

    def crossing(self, value_NB: Tensor) -> Tensor:
        """What of a prediction [N, B, ...] at the ends crosses the cuts (see ``Chunks.crossing``)."""
        return value_NB if self.chunks is None else self.chunks.crossing(value_NB)

    def context_of_ends(self) -> list[Tensor]:
        """The context [N, B, C] of the rows of end; an empty list without one."""
        if self.context is None:
            return []
        stride = self.chunks.truncation if self.chunks is not None and self.chunks.dense else 1
        return [torch.cat([self.context[stride:-1:stride], self.context[-1:]])]

    def rows(
        self, target: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor], dict[str, Tensor]]:
        """What ``GradientEstimator.accumulate`` takes: states, targets, [context], {"weight": ...}.

        The rows of start and, last, those of end[-1] in which a sequence ends, with the target zero,
        or, without ``terminal_target``, no row in which one has ended.
        """
        taught, chunks = self.estimator.terminal_target, self.chunks
        shape = self.start.shape[-self.estimator.state_dims :]
        start, target = self.start.reshape(-1, *shape), target.reshape(-1, *shape)
        context = [] if self.context is None else [self.context[:-1].flatten(0, -2)]
        weight = None
        if chunks is not None and chunks.reset is not None and not taught:
            # A row that is reset at its first step started with the end of another sequence.
            fresh = chunks.reset if chunks.dense else chunks.reset[:: chunks.truncation]
            weight = (~fresh).flatten().to(start.dtype)
        if chunks is not None and chunks.final is not False and taught:
            ended = self.end[-1].detach()
            if chunks.final is not True:
                # Rows that did not end weigh nothing: to leave them out, the host would have to know.
                weight = torch.cat([start.new_ones(len(start)), chunks.final.to(start.dtype)])
            start = torch.cat([start, ended])
            target = torch.cat([target, torch.zeros_like(ended)])
            if self.context is not None:
                context = [torch.cat([*context, self.context[-1]])]
        return start, target, context, {} if weight is None else {"weight": weight}
