"""Truncated: a core run in chunks of K steps, with an estimator at every cut."""

import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dnirnn import ops
from dnirnn.checks import check_tensors
from dnirnn.core import (
    Core,
    charging,
    check_core,
    check_inputs,
    keep_t,
    known_t,
    unroll,
)
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.interface import Interface, asked, guard, make_probe
from dnirnn.unroll import Chunks, Unrolled, check_t0

COMPILED = (
    "a Truncated with an estimator can't be captured whole: its probes require a gradient, which"
    " torch.compile takes of no tensor that it makes itself. Compile the core, truncated.compile("
    "fullgraph=True); or leave fullgraph out"
)


class Truncated(nn.Module):
    """Unrolls ``core`` in chunks of ``truncation`` steps; no gradient crosses from chunk to chunk.

    What the future would have sent back across a cut, ``estimator`` predicts. Use
    :func:`dnirnn.backward` in place of ``loss.backward()``.

    core: any :class:`dnirnn.Core`.
    truncation: K, steps a chunk, at least 1. A sequence that is shorter is one short chunk.
    estimator: ``ZeroGradient()`` for plain truncated backpropagation, ``SyntheticGradient(
        core.state_size)`` for a decoupled neural interface. Its state size must be the core's.
    open_cuts: p, from 0 to below 1, for random cuts without a bias; None: every cut is closed. With G
        what really comes back to a cut and g what the estimator says there, scale included,

            g + (z / p) (G - g),  z = 1 with probability p, else 0

        crosses it, whose mean is G whatever g is: a bad estimator costs variance and never bias, a
        good one takes the variance away. A call ends at a closed cut, and all cuts within it are
        open: so ``draw_chunks`` draws the length of each, and calls of other lengths have a bias.
        With ZeroGradient it is ARTBP. p = 0 is plain truncation, a chunk a call.

    Raises TypeError or ValueError naming the argument where one does not fit.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    section 2.1. Random cuts: Tallec and Ollivier, Unbiasing Truncated Backpropagation Through Time,
    2017, arXiv 1705.08209; g there, as a control variate, is our own.
    """

    def __init__(
        self,
        core: Core,
        truncation: int,
        estimator: GradientEstimator,
        open_cuts: float | None = None,
    ):
        super().__init__()
        check_core(core=core)
        if isinstance(truncation, bool) or not isinstance(truncation, int):
            raise TypeError(f"truncation must be an int; got {truncation!r}")
        if truncation < 1:
            raise ValueError(f"truncation must be at least 1 step; got {truncation}")
        if not isinstance(estimator, GradientEstimator):
            raise TypeError(
                f"estimator must be a dnirnn.GradientEstimator; got {type(estimator).__name__}"
                " (dnirnn.ZeroGradient() for none)"
            )
        size = getattr(estimator, "state_size", core.state_size)
        if size != core.state_size:
            raise ValueError(
                f"estimator predicts for a state of {size}; the core's state_size is {core.state_size}"
            )
        check_open_cuts(open_cuts, estimator)
        self.core, self.truncation, self.estimator = core, truncation, estimator
        self.open_cuts = open_cuts

    def draw_chunks(self) -> int:
        """How many chunks the next call takes, with ``open_cuts``: 1 + a geometric number of mean
        p / (1 - p), from torch's global generator. 1 without.
        """
        if not self.open_cuts:
            return 1
        uniform = float(torch.rand((), dtype=torch.float64))
        return 1 + int(math.log1p(-uniform) / math.log(self.open_cuts))

    def forward(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        t0: int | Tensor | None = None,
        final: bool | Tensor = False,
        reset: Tensor | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        """Runs N = ceil(T / K) chunks, the last one short if need be.

        x_TBI: inputs [T, B, I].
        state_BS: the state [B, S] to start from, in at least float32. Where it requires a gradient
            (a learned initial state, what an encoder said), it gets what the first chunk sends back.
        t0: steps since the sequence's start at the first step, an int or a LongTensor [B]. None: as
            the state knows it, an ``initial_state`` or what the call before returned; it matters to
            cores that read the time alone, which warn where the state does not know, and take 0. Or,
            to a core that ``takes_times`` (:class:`dnirnn.PhasedLSTM`), the time of every step, a float
            tensor [T, B]: give it to every call then.
        final: True, or a bool tensor [B]: the sequence really ends with this call (not merely its
            window), so nothing comes back from beyond it.
        reset: bool [T, B]: a new sequence starts in that row at that step. The state becomes the
            initial state there, and neither a gradient nor a synthetic gradient crosses.
        context: what an estimator with needs_context is told beside the states: [T + 1, B, C], of
            the state that each step starts from, then of the last one; or [B, C], of all of them (a
            label).

        Returns (outputs [T, B, O], last state [B, S], a detached copy, interfaces): one stacked
        :class:`dnirnn.Interface`, to be given to :func:`dnirnn.backward`.

        Raises TypeError or ValueError naming the argument that does not fit.
        """
        if torch.compiler.is_dynamo_compiling():
            if torch.is_grad_enabled() and not isinstance(self.estimator, ZeroGradient):
                torch._dynamo.graph_break(msg=COMPILED)
            else:
                output, state, cut = self.unroll(x_TBI, state_BS, t0, final, reset, context)
                return output, state, [cut]
        with charging() as charges:
            output, state, cut = self.unroll(x_TBI, state_BS, t0, final, reset, context)
        if cut.probe is not None:
            guard(output, cut.probe)
        return output, state, [cut._replace(charge=sum(charges)) if charges else cut]

    def compile(self, *arguments, **options) -> None:
        """Compiles the core, as ``core.compile`` does; what is around it stays Python's."""
        self.core.compile(*arguments, **options)

    def unroll(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        t0: int | Tensor | None,
        final: bool | Tensor,
        reset: Tensor | None,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor, Interface]:
        """forward, without what the core charges."""
        core, state = self.core, state_BS
        steps, batch = check_inputs(core, x_TBI, state, reset)
        if t0 is None:
            t0 = known_t(core, state)
        else:
            check_t0(core, t0, steps, batch)
        if self.open_cuts == 0 and torch.is_grad_enabled() and steps > self.truncation:
            raise ValueError(
                f"x must have one chunk of {self.truncation} steps with open_cuts=0; got {steps}"
            )
        final = check_final(final, batch, x_TBI.device)
        estimator, K = self.estimator, self.truncation
        chunks = Chunks(steps, K, t0, reset, final, self.open_cuts)

        def returned(found: Unrolled, cut: Interface) -> tuple[Tensor, Tensor, Interface]:
            ended = keep_t(core, found.end[-1].detach().clone(), t0, reset, steps)
            return found.output, ended, cut

        if not torch.is_grad_enabled() or not estimator.is_used():
            if not torch.is_grad_enabled():
                chunks = chunks._replace(open_cuts=None)
            elif not isinstance(estimator, ZeroGradient):
                estimator = ZeroGradient()
            found = unroll(core, x_TBI, state, None, chunks)
            return returned(found, Interface(found.end, None, starts(state, found), None, estimator, chunks))
        if ops.in_transform():
            raise RuntimeError(
                "torch.func's transforms (vmap, grad, jvp) can't go through a Truncated with an"
                " estimator, whose gradients dnirnn.backward adds to .grad; with ZeroGradient() they can"
            )

        if getattr(DistributedDataParallel, "_active_ddp_module", None) is not None:
            raise RuntimeError(
                "DistributedDataParallel averages what one loss's backward pass reaches, and an estimator"
                " is fitted after it: the ranks' estimators would drift apart. Without it, write"
                " dnirnn.distributed.broadcast(model) once, and after every dnirnn.backward"
                " dnirnn.distributed.average_gradients(model)"
            )
        if context is not None or estimator.needs_context:
            context = check_context(context, estimator, steps, batch)
            stride = 1 if estimator.dense else K
            context = torch.cat([context[:steps:stride], context[steps:]])
        chunks = chunks._replace(dense=estimator.dense, vjp=estimator.needs_vjp)
        rows = steps if chunks.dense else -(-steps // K)
        probe = make_probe(rows, *state.shape, dtype=state.dtype, device=state.device)
        # What is not injected, or takes a context, the core can't compute on its way.
        emits = estimator.scale and not estimator.needs_context
        found = unroll(core, x_TBI, state, probe, chunks, estimator if emits else None)
        cut = Interface(
            found.end, None, starts(state, found), probe, estimator, chunks, context, found.vjp
        )  # fmt: skip
        return returned(found, asked(cut, found.synthetic))

    def extra_repr(self) -> str:
        said = f"truncation={self.truncation}"
        return said if self.open_cuts is None else f"{said}, open_cuts={self.open_cuts}"


def starts(state: Tensor, found: Unrolled) -> Tensor:
    """What the chunks, or of dense ones the steps, start from, without their probes."""
    if found.start is not None:
        return found.start
    return torch.cat([state.detach()[None], found.end.detach()[:-1]])


def check_open_cuts(open_cuts: float | None, estimator: GradientEstimator) -> None:
    if open_cuts is None:
        return
    if isinstance(open_cuts, bool) or not isinstance(open_cuts, (int, float)):
        raise TypeError(f"open_cuts must be a number or None; got {open_cuts!r}")
    if not 0 <= open_cuts < 1:
        raise ValueError(f"open_cuts must be from 0 to below 1; got {open_cuts!r}")
    if hasattr(estimator, "look"):
        raise ValueError(f"open_cuts goes with an estimator that looks at no cut; got {estimator}")
    for name in ("dense", "trace_decay", "auxiliary", "needs_jacobian"):
        if getattr(estimator, name, False):
            raise ValueError(f"open_cuts goes with an estimator without {name}; got {estimator}")


def check_context(
    context: Tensor | None, estimator: GradientEstimator, steps: int, batch: int
) -> Tensor:
    """The context as [T + 1, B, C], detached, or a ValueError that says what was expected."""
    if not estimator.needs_context:
        name = type(estimator).__name__
        raise ValueError(f"context is for an estimator that needs one; this {name} does not")
    if context is not None:
        check_tensors(context=context)
    shape = None if context is None else tuple(context.shape)
    size = getattr(estimator, "context_size", None if shape is None else shape[-1])
    if context is None or shape not in ((steps + 1, batch, size), (batch, size)):
        raise ValueError(
            f"context must be [{steps + 1}, {batch}, {size}] or [{batch}, {size}] for this x and"
            f" estimator; got {shape}"
        )
    return context.detach().expand(steps + 1, batch, size)


def check_final(final: bool | Tensor, batch: int, device: torch.device) -> bool | Tensor:
    if isinstance(final, bool):
        return final
    if not isinstance(final, Tensor) or final.dtype != torch.bool:
        raise TypeError(f"final must be a bool or a bool tensor [B]; got {final!r}")
    if tuple(final.shape) != (batch,):
        raise ValueError(f"final must be a bool or [{batch}]; got {tuple(final.shape)}")
    # A copy: the caller may write the next call's ends in its place before the backward pass.
    return final.to(device, copy=True)
