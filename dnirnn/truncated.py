"""Truncated: a core run in chunks of K steps, with an estimator at every cut."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dnirnn import ops
from dnirnn.checks import check_sizes, check_tensors
from dnirnn.core import (
    Core,
    auxiliary_losses,
    check_core,
    check_inputs,
    has_hooks,
    keep_t,
    known_t,
    unroll,
)
from dnirnn.embedding import Embedded
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.interface import Interface, asked, guard, make_probe
from dnirnn.unroll import Chunks, Unrolled, advance, are_times, check_t0

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
        what really comes back to a cut and g the estimator's prediction there, scale included,

            g + (z / p) (G - g),  z = 1 with probability p, else 0

        crosses it, whose mean is G whatever g is: a bad estimator costs variance and never bias, a
        good one takes the variance away. A call ends at a closed cut, and all cuts within it are
        open: so ``draw_chunks`` draws the length of each, and calls of other lengths have a bias.
        With ZeroGradient it is ARTBP. p = 0 is plain truncation, a chunk a call.
    overlap: how many steps further back than its chunk the gradient of a call goes: with k1 =
        ``truncation`` and k2 = k1 + overlap it is TBPTT(k1, k2), a chunk a call. A call is then given
        those steps again, before the new ones, with the state before them, and runs them with the
        parameters as they are now. The losses, and the estimator's prediction at the end, are those of
        the new steps; the estimator is fitted at the state that these start from.

    Raises TypeError or ValueError naming the argument where one does not fit.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    section 2.1. Random cuts: Tallec and Ollivier, Unbiasing Truncated Backpropagation Through Time,
    2017, arXiv 1705.08209; g there, as a control variate, is our own. Overlap: Williams and Peng, An
    Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories, 1990,
    which keeps the old activations in the place of running the steps again.
    """

    def __init__(
        self,
        core: Core,
        truncation: int,
        estimator: GradientEstimator,
        open_cuts: float | None = None,
        overlap: int = 0,
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
        check_sizes(0, overlap=overlap)
        if overlap and open_cuts is not None:
            raise ValueError(f"overlap must be 0 with open_cuts; got {overlap} and {open_cuts}")
        if overlap and (hasattr(estimator, "look") or getattr(estimator, "needs_jacobian", False)):
            raise ValueError(
                f"overlap must be 0 with {type(estimator).__name__}, which goes from chunk to chunk;"
                f" got {overlap}"
            )
        self.core, self.truncation, self.estimator = core, truncation, estimator
        self.open_cuts, self.overlap = open_cuts, overlap

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
        x_TBI: Tensor | Embedded,
        state_BS: Tensor,
        t0: int | Tensor | None = None,
        final: bool | Tensor = False,
        reset: Tensor | None = None,
        context: Tensor | None = None,
        overlap: int = 0,
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        """Runs N = ceil(T / K) chunks, the last one short if need be.

        x_TBI: inputs [T, B, I]; or what :meth:`dnirnn.Embedding.lazy` returned.
        state_BS: the state [B, S] to start from, in at least float32. Where it requires a gradient
            (a learned initial state, an encoder's output), it gets what the first chunk sends back.
        t0: steps since the sequence's start at the first step, an int or a LongTensor [B]. None: as
            the state knows it, an ``initial_state`` or what the call before returned; it matters to
            cores that read the time alone, which warn where the state does not know, and take 0. Or,
            to a core that ``takes_times`` (:class:`dnirnn.PhasedLSTM`), the time of every step, a float
            tensor [T, B]: give it to every call then.
        final: True, or a bool tensor [B]: the sequence really ends with this call (not merely its
            window), so nothing comes back from beyond it.
        reset: bool [T, B]: a new sequence starts in that row at that step. The state becomes the
            initial state there, and neither a gradient nor a synthetic gradient crosses.
        context: what an estimator with needs_context is conditioned on beside the states: [T + 1, B, C], of
            the state that each step starts from, then of the last one; or [B, C], of all of them (a
            label).
        overlap: how many steps at x's start are those of calls before, at most the Truncated's own
            ``overlap``: x and reset are then of overlap + T steps, t0 and the state of the first of
            them, outputs and context of the others.

        Returns (outputs [T, B, O], last state [B, S], a detached copy, interfaces): one stacked
        :class:`dnirnn.Interface`, to be given to :func:`dnirnn.backward`. Of a Truncated with an
        overlap the state is not the last one, but that from which the next call starts:
        ``next_overlap(overlap + T)`` steps before the end. Without gradients (``torch.no_grad``) it is
        the last.

        Raises TypeError or ValueError naming the argument that does not fit.
        """
        if isinstance(x_TBI, Embedded) and not self.takes_embedded(x_TBI, reset):
            x_TBI = x_TBI.dense()
        if torch.compiler.is_dynamo_compiling():
            if torch.is_grad_enabled() and not isinstance(self.estimator, ZeroGradient):
                torch._dynamo.graph_break(msg=COMPILED)
            else:
                output, state, cut = self.unroll(x_TBI, state_BS, t0, final, reset, context, overlap)
                return output, state, [cut]
        with auxiliary_losses() as losses:
            output, state, cut = self.unroll(x_TBI, state_BS, t0, final, reset, context, overlap)
        if cut.probe is not None:
            guard(output, cut.probe)
        return output, state, [cut._replace(auxiliary_loss=sum(losses)) if losses else cut]

    def takes_embedded(self, x: Embedded, reset: Tensor | None) -> bool:
        """Whether the core takes the symbols as they are."""
        core, estimator = self.core, self.estimator
        if torch.compiler.is_compiling() or has_hooks(core) or self.overlap or self.open_cuts is not None:
            return False
        apart = torch.is_grad_enabled() and (estimator.dense or estimator.needs_vjp)
        return not apart and core.takes_embedded(x, reset)

    def next_overlap(self, steps: int) -> int:
        """How many of the last steps the next call is given again, after one of so many in all."""
        return min(steps, self.overlap)

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
        overlap: int,
    ) -> tuple[Tensor, Tensor, Interface]:
        """forward, without the core's auxiliary losses."""
        core, state = self.core, state_BS
        steps, batch = check_inputs(core, x_TBI, state, reset)
        if t0 is None:
            t0 = known_t(core, state)
        else:
            check_t0(core, t0, steps, batch)
        following = None
        if overlap or self.overlap and torch.is_grad_enabled():
            check_overlap(overlap, self.overlap, steps)
            given = (x_TBI, state, t0, reset)
            (x_TBI, state, t0, reset), following = self.run_overlap(*given, overlap)
            steps -= overlap
        if steps > self.truncation and (self.overlap or self.open_cuts == 0):
            if torch.is_grad_enabled():
                name = "an overlap" if self.overlap else "open_cuts=0"
                raise ValueError(
                    f"x must have one chunk of {self.truncation} steps with {name}; got {steps}"
                )
        final = check_final(final, batch, x_TBI.device)
        estimator, K = self.estimator, self.truncation
        chunks = Chunks(steps, K, t0, reset, final, self.open_cuts)

        def returned(found: Unrolled, cut: Interface) -> tuple[Tensor, Tensor, Interface]:
            if following is not None:
                return found.output, following, cut
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

    def run_overlap(
        self, x: Tensor, state: Tensor, t0: int | Tensor, reset: Tensor | None, overlap: int
    ) -> tuple[tuple, Tensor | None]:
        """Runs the steps of the overlap, with their graph.

        Returns (x, state, t0, reset) of the steps after them, and the state that the next call
        starts from, detached; None without gradients.
        """
        core, graph = self.core, torch.is_grad_enabled()

        def run(state: Tensor, start: int, end: int) -> Tensor:
            if start == end:
                return state
            part = None if reset is None else reset[start:end]
            # The core's auxiliary losses of these steps were taken by the calls before.
            with nullcontext() if torch.compiler.is_compiling() else auxiliary_losses():
                t = advance(t0, reset, start)
                t = t[: end - start] if are_times(t) else t
                return core(x[start:end], state, t, part)[1]

        following = len(x) - self.next_overlap(len(x))
        kept = run(state, 0, min(following, overlap))
        state = run(kept, min(following, overlap), overlap)
        if following > overlap and graph:
            with torch.no_grad():
                kept = run(state.detach(), overlap, following)
        kept = keep_t(core, kept.detach().clone(), t0, reset, following) if graph else None
        rest = None if reset is None else reset[overlap:]
        return (x[overlap:], state, advance(t0, reset, overlap), rest), kept

    def extra_repr(self) -> str:
        text = f"truncation={self.truncation}"
        text += f", overlap={self.overlap}" if self.overlap else ""
        return text if self.open_cuts is None else f"{text}, open_cuts={self.open_cuts}"


@contextmanager
def cut_otherwise(
    truncated: Truncated, estimator: GradientEstimator, truncation: int | None = None
) -> Iterator[None]:
    """Inside, its calls have this estimator and truncation (None: its own), closed cuts, no overlap."""
    names = ("estimator", "truncation", "open_cuts", "overlap")
    own = [getattr(truncated, name) for name in names]
    try:
        for name, value in zip(names, (estimator, truncation or truncated.truncation, None, 0)):
            setattr(truncated, name, value)
        yield
    finally:
        for name, value in zip(names, own):
            setattr(truncated, name, value)


def starts(state: Tensor, found: Unrolled) -> Tensor:
    """What the chunks, or of dense ones the steps, start from, without their probes."""
    if found.start is not None:
        return found.start
    if len(found.end) == 1:
        # A copy: the caller may write into the state before the backward pass.
        return state.detach().clone()[None]
    return torch.cat([state.detach()[None], found.end.detach()[:-1]])


def check_overlap(overlap: int, most: int, steps: int) -> None:
    if isinstance(overlap, bool) or not isinstance(overlap, int):
        raise TypeError(f"overlap must be an int; got {overlap!r}")
    if not 0 <= overlap <= most:
        raise ValueError(
            f"overlap must be from 0 to the {most} of this Truncated; got {overlap}"
        )
    if overlap >= steps:
        raise ValueError(f"overlap must leave a step of x's {steps}; got {overlap}")


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
