"""Truncated: a core run in chunks of K steps, with an estimator at every cut."""

import math

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dnirnn import ops
from dnirnn.checks import check_tensors
from dnirnn.core import (
    Core,
    advance,
    charging,
    check_core,
    check_inputs,
    check_t0,
    keep_t,
    known_t,
    unroll,
)
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.estimators.base import tensors_of
from dnirnn.interface import Interface, guard, make_probe

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
            cores that read the time alone, which warn where the state does not know, and take 0.
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
            check_t0(t0, batch)
        if self.open_cuts == 0 and torch.is_grad_enabled() and steps > self.truncation:
            raise ValueError(
                f"x must have one chunk of {self.truncation} steps with open_cuts=0; got {steps}"
            )
        final = check_final(final, batch, x_TBI.device)
        chunks = -(-steps // self.truncation)
        cuts = (self.truncation, t0, reset)
        estimator = None if isinstance(self.estimator, ZeroGradient) else self.estimator
        said_by = self.estimator
        if estimator is not None and torch.is_grad_enabled() and not estimator.is_used():
            estimator, said_by = None, ZeroGradient()
        if estimator is None or not torch.is_grad_enabled():
            if self.open_cuts is None or not torch.is_grad_enabled():
                output, sent, _ = unroll(core, "unroll_chunks", x_TBI, state, None, *cuts)
            else:
                output, sent = unroll_open(core, x_TBI, state, None, *cuts, self.open_cuts)
            entered = torch.cat([state.detach()[None], sent.detach()[:-1]])
            cut = Interface(sent, None, entered, None, said_by, steps=steps)
            return output, keep_t(core, sent[-1].detach().clone(), t0, reset, steps), cut
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
        rows = steps if estimator.dense else chunks
        probe = make_probe(rows, *state.shape, dtype=state.dtype, device=state.device)
        pull = synthetic = share = None
        run = (x_TBI, state, probe, *cuts)
        if self.open_cuts is not None:
            output, sent = unroll_open(core, *run, self.open_cuts)
            # Of g + (z / p) (G - g), what the open cut itself does not carry.
            share = torch.ones_like(sent[:, :1, :1])
            share[:-1] = 1 - 1 / self.open_cuts if chunks > 1 else 1
        elif estimator.dense:
            output, sent, entered = unroll(core, "unroll_dense", *run)
        elif estimator.trace_decay and not estimator.needs_jacobian:
            output, sent, pull = unroll(core, "unroll_pulling", *run)
        else:
            emitting = None if estimator.needs_context else estimator
            output, sent, synthetic = unroll(core, "unroll_chunks", *run, emitting)
        if not estimator.dense:
            entered = torch.cat([state.detach()[None], sent.detach()[:-1]])

        beside = []
        if context is not None:
            stride = 1 if estimator.dense else self.truncation
            last = context[steps:]
            beside = [torch.cat([context[self.truncation : steps : self.truncation], last])]
            context = torch.cat([context[:steps:stride], last])
        if synthetic is None:
            synthetic = estimator.scale * say(estimator, sent, *beside)
            synthetic = synthetic if share is None else share * synthetic
        bootstrap = ahead = ended = None
        if estimator.discount != estimator.scale:
            bootstrap = cut_off(
                synthetic * (estimator.discount / estimator.scale)
                if estimator.scale
                else estimator.discount
                * say(estimator, sent, *beside)
                * (1 if share is None else share),
                reset,
                final,
                self.truncation,
            )
        synthetic = cut_off(synthetic, reset, final, self.truncation)
        if estimator.auxiliary and chunks > 1:
            coming = cut_off(say(estimator, sent, *beside), reset, final, self.truncation)[1:]
            ahead, foresight = look_ahead(estimator, sent, coming, reset, self.truncation)
            bootstrap = synthetic if bootstrap is None else bootstrap
            synthetic = synthetic + torch.cat([foresight, torch.zeros_like(foresight[:1])])
        if estimator.needs_jacobian:
            going_on = torch.ones_like(sent[..., :1])
            ended = cut_off(going_on, reset, final, self.truncation)[..., 0] == 0
        terminal = final if estimator.terminal_target and final is not False else None
        weight = None
        if reset is not None and not estimator.terminal_target:
            # A row that is reset at its first step entered with the end of another sequence.
            weight = ~(reset if estimator.dense else reset[:: self.truncation])
        cut = Interface(
            sent, synthetic, entered, probe, self.estimator, terminal, bootstrap,
            context, pull, ahead, ended, weight=weight, steps=steps,
            held=tensors_of(estimator),
        )  # fmt: skip
        return output, keep_t(core, sent[-1].detach().clone(), t0, reset, steps), cut

    def extra_repr(self) -> str:
        said = f"truncation={self.truncation}"
        return said if self.open_cuts is None else f"{said}, open_cuts={self.open_cuts}"


def unroll_open(
    core: Core,
    x_TBI: Tensor,
    state_BS: Tensor,
    probe_NBS: Tensor | None,
    truncation: int,
    t0: int | Tensor,
    reset: Tensor | None,
    open_cuts: float,
) -> tuple[Tensor, Tensor]:
    """(outputs, sent) of chunks to whose cuts 1 / open_cuts times the gradient comes back."""
    outputs, sent, state = [], [], state_BS
    for n, x_KBI in enumerate(x_TBI.split(truncation)):
        start = state if probe_NBS is None else state + probe_NBS[n]
        rows = slice(n * truncation, n * truncation + len(x_KBI))
        reset_KB = None if reset is None else reset[rows]
        output, end = core(x_KBI, start, advance(t0, reset, n * truncation), reset_KB)
        outputs.append(output)
        sent.append(end)
        if rows.stop < len(x_TBI):
            # The value is that of the end to the bit: what is divided is zero.
            state = end.detach() + (end - end.detach()) / open_cuts
    return torch.cat(outputs), torch.stack(sent)


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
        if getattr(estimator, name):
            raise ValueError(f"open_cuts goes with an estimator without {name}; got {estimator}")


def say(estimator: GradientEstimator, sent: Tensor, *context: Tensor) -> Tensor:
    """What the estimator predicts at sent, detached; autocast would have it in its own dtype."""
    with torch.no_grad():
        return estimator(sent.detach(), *context).to(sent.dtype)


def look_ahead(
    estimator: GradientEstimator,
    sent: Tensor,
    coming: Tensor,
    reset: Tensor | None,
    truncation: int,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], Tensor]:
    """The auxiliary task at all boundaries but the last, whose next ones say ``coming``.

    Returns the rows to fit, (states [R, S], coming [R, S], their weights [R] or None), and the
    gradient [N - 1, B, S] of the task's error with respect to the states. Where a sequence starts
    before the next boundary, there is nothing to predict: such a row weighs nothing.
    """
    states = sent[:-1].detach().requires_grad_()
    missed = estimator.ahead(states) - coming
    weight = None
    if reset is not None:
        known = ~torch.stack([part.any(0) for part in reset.split(truncation)[1:]])
        missed = missed * known[..., None]
        weight = known.flatten().to(states.dtype)
    error = 0.5 * estimator.auxiliary * missed.square().sum()
    rows = states.detach().flatten(0, 1), coming.flatten(0, 1), weight
    return rows, torch.autograd.grad(error, states)[0]


def cut_off(
    synthetic_NBS: Tensor, reset: Tensor | None, final: bool | Tensor, truncation: int
) -> Tensor:
    """Zeroes the synthetic gradient where a sequence ends, or where the next chunk starts a new one."""
    if reset is not None:
        # A reset at step 0 cuts this call off from the one before; that call was told by `final`.
        starts = reset[truncation::truncation]
        ends = torch.cat([starts, torch.zeros_like(reset[:1])])
        synthetic_NBS = synthetic_NBS.masked_fill(ends[..., None], 0)
    if final is True:
        return torch.cat([synthetic_NBS[:-1], torch.zeros_like(synthetic_NBS[-1:])])
    if final is False:
        return synthetic_NBS
    last = synthetic_NBS[-1:].masked_fill(final[:, None], 0)
    return torch.cat([synthetic_NBS[:-1], last])


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
