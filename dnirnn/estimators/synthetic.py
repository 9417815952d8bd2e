"""SyntheticGradient: a linear map or an MLP that predicts the gradient of the future."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnirnn import ops
from dnirnn.boundary import Interface
from dnirnn.checks import check_flags, check_knobs, check_sequences, check_sizes
from dnirnn.core import has_hooks
from dnirnn.estimators.auto_scale import PredictorConfig
from dnirnn.estimators.base import GradientEstimator, Setting
from dnirnn.estimators.layered import Layered
from dnirnn.estimators.reader import Reader
from dnirnn.options import option


class SyntheticGradient(Layered):
    """A linear map or an MLP with ReLU that predicts the gradient from the state.

    With layers W_1..W_D: g(s) = W_D relu(... relu(W_1 s + b_1) ...) + b_D. The regression is half
    the squared error to the bootstrapped target, summed over S, meaned over the rows. The last
    layer starts at zero in weight and in bias, so the first update is that of plain truncation.

    With s_n the state that chunk n starts from, L_n its loss, J_n = d s_(n+1) / d s_n, the target
    of g(s_n) is

        G_n = dL_n / ds_n + discount J_n' ((1 - trace_decay) g(s_(n+1)) + trace_decay G_(n+1))

    and G_N = g(s_N) at the end of a call of N chunks, 0 at the end of a sequence. A trace_decay of
    0 is the bootstrap after one chunk; 1, with the sequence's end in the call, is the whole
    discounted future gradient. It pays with several chunks a call, and takes two more passes back
    through them, of the states' gradients alone: one side by side, one chunk after chunk.

    state_size: S of the core.
    hidden: widths of the hidden layers; () is the linear estimator.
    scale: multiplies g where it is injected into the core.
    discount: multiplies g where it enters the bootstrapped target. Where it equals ``scale`` one
        backward pass serves both; where it differs, :func:`dnirnn.backward` runs a second one for
        the targets. With both at 1 the bootstrap feeds on itself and usually diverges.
    context_size: C, of what it is conditioned on beside the state: the next step's input, or a label (cDNI).
        The first layer then takes [s, context]; see ``context`` of Truncated. 0: nothing.
    normalise: predicts in units of the targets' running RMS r: g(s) = r MLP(s), and the MLP is
        fitted to target / r. r^2 is the mean over all elements and fits, those long ago decaying by
        0.99 a fit. Adam moves a weight by about its learning rate, however small the gradient, so
        without this a rate that suits targets of one size makes noise of the size of the signal
        where they are smaller; with it, a rate means the same at every size of the targets.
    dense: fits g at every state of a chunk, not only at its first: K targets for one. A state late
        in a chunk has fewer steps of true gradient in its target, and more of the bootstrap, than
        the first one.
    trace_decay: lambda above, 0 to 1; not with ``dense``.
    batch_norm: normalises each hidden layer before its ReLU over the rows of a call, as the paper's
        feed-forward estimators do; with the running statistics after ``eval()``. It takes hidden
        layers, and calls of at least two rows.
    auxiliary: weight of the auxiliary task (DNI + Aux); 0: none. A second predictor a of the same
        shape predicts, at each boundary, what g will predict at the next one of the same sequence. Its
        error, auxiliary / 2 |a(s_n) - g(s_(n+1))|^2, is a loss of the core too: its gradient
        with respect to s_n is injected beside scale g(s_n), and is no part of any target. The last
        boundary of a call has no next one, so it takes calls of at least two chunks.
    terminal_target: whether g is fitted to zero at states in which a sequence ends.

    What others used: the paper multiplies the synthetic gradient by 0.1 where it is used; the
    koz4k/dni-pytorch script lets that 0.1 enter the target too, where it acts as a discount of 0.1
    per chunk; the BP(lambda) code scales the injection only, and discounts by its own gamma.

    Raises TypeError or ValueError for sizes below 1, a scale, discount or auxiliary that is
    negative or not finite, a trace_decay outside [0, 1], or one with ``dense``, and a batch_norm
    without hidden layers.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    sections 2.1 and 2.2, and section 3 for cDNI and the auxiliary task. Lambda targets: Sutton and
    Barto, Reinforcement Learning, 2018, section 12.1, as Pemberton and Costa 2024 have them for
    gradients (see BPLambda).
    """

    def __init__(
        self,
        state_size: int,
        hidden: Sequence[int] = (),
        scale: float = 0.1,
        discount: float = 0.1,
        *,
        context_size: int = 0,
        normalise: bool = False,
        batch_norm: bool = False,
        dense: bool = False,
        trace_decay: float = 0.0,
        auxiliary: float = 0.0,
        terminal_target: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(state_size=state_size)
        check_sequences(hidden=hidden)
        check_sizes(0, context_size=context_size)
        check_knobs(scale=scale, discount=discount, auxiliary=auxiliary, trace_decay=trace_decay)
        check_flags(
            normalise=normalise, dense=dense, batch_norm=batch_norm, terminal_target=terminal_target
        )
        if dense and trace_decay:
            raise ValueError(f"dense targets have no trace_decay; got {trace_decay!r}")
        if batch_norm and not len(hidden):
            raise ValueError("batch_norm is of hidden layers; got hidden=()")
        self.state_size, self.context_size = state_size, context_size
        self.scale, self.discount = float(scale), float(discount)
        self.dense, self.trace_decay = dense, float(trace_decay)
        self.terminal_target, self.needs_context = terminal_target, context_size > 0
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        widths = [state_size + context_size, *hidden, state_size]
        self.set_layers(
            [nn.Linear(i, o, **made) for i, o in zip(widths, widths[1:])],
            [nn.BatchNorm1d(width, **made) for width in (hidden if batch_norm else ())],
            normalise,
            made,
        )
        self.auxiliary = float(auxiliary)
        self.ahead = None
        if auxiliary:
            self.ahead = SyntheticGradient(
                state_size, hidden, normalise=normalise, batch_norm=batch_norm, **made
            )

    @property
    def weights(self) -> list[Tensor]:
        """[W_1, b_1, ..., W_D, b_D] where forward is this MLP of the state alone, else [].

        What the fused operator takes, which then emits the predictions, times scale, on its way. The
        auxiliary task needs them as they are.
        """
        others = self.normalise or self.needs_context or len(self.norms) or self.auxiliary
        return [] if others or any(map(has_hooks, self.layers)) else self.parts

    @property
    def takes_predicted(self) -> bool:
        """Of the linear map the regression needs nothing else of a prediction."""
        return self.keeps_graph or len(self.layers) == 1 and bool(self.weights)

    @property
    def keeps_graph(self) -> bool:
        """With batch norm, so that its running statistics see each row once."""
        return len(self.norms) > 0 and not self.normalise

    @property
    def parts(self) -> list[Tensor]:
        return [tensor for layer in self.layers for tensor in (layer.weight, layer.bias)]

    def own_parameters(self) -> list[nn.Parameter]:
        """Those of g; the auxiliary task's predictor has its own."""
        return [*self.layers.parameters(), *self.norms.parameters()]

    def forward(self, state: Tensor, context: Tensor | None = None) -> Tensor:
        """The predicted gradient [..., S] at the state [..., S], with the context [..., C]."""
        value = state if context is None else torch.cat([state, context.to(state.dtype)], -1)
        value = self.through(value)
        return self.unit * value if self.normalise else value

    def normed(self, norm: nn.Module, value: Tensor) -> Tensor:
        """The batch norm of value [..., F] over all its rows."""
        rows = value.reshape(-1, value.shape[-1])
        if norm.training and len(rows) < 2:
            raise ValueError("batch_norm takes calls of at least 2 rows in training; got 1")
        return norm(rows).view_as(value)

    def inject(self, cut: Interface) -> Tensor:
        """scale g, and the auxiliary task's gradient where there is one."""
        plain = super().inject(cut)
        if self.ahead is None or len(plain) == 1:
            return plain
        cut.kept["ahead"], from_ahead = self.look_ahead(cut)
        return plain + torch.cat([from_ahead, torch.zeros_like(plain[:1])])

    def bootstrap(self, cut: Interface) -> Tensor | None:
        if "ahead" not in cut.kept:
            return super().bootstrap(cut)
        return cut.crossing(self.discount * self.predict(cut))

    def fit(self, cut: Interface, target: Tensor) -> dict[str, Tensor]:
        """With ``auxiliary_error`` where there is an auxiliary task."""
        if cut.chunks is None and self.takes_predicted and "predicted" in cut.kept:
            # Its start is its end, where the prediction is known.
            start, target, _, _ = cut.rows(target)
            predicted = cut.kept["predicted"].reshape(start.shape)
            return {"estimator_error": self.accumulate(start, target, predicted=predicted)}
        found = super().fit(cut, target)
        if self.ahead is not None and "ahead" in cut.kept:
            states, coming, weight = cut.kept["ahead"]
            found["auxiliary_error"] = self.ahead.accumulate(states, coming, weight=weight)
        return found

    def look_ahead(
        self, cut: Interface
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None], Tensor]:
        """The auxiliary task at all boundaries but the last.

        Returns the rows to fit, (states [R, S], what g predicts at the next boundaries [R, S], their
        weights [R] or None), and the gradient [N - 1, B, S] of the task's error with respect to the
        states. Where a sequence starts before the next boundary, there is nothing to predict: such a
        row weighs nothing.
        """
        assert self.ahead is not None and cut.chunks is not None
        coming = cut.crossing(self.predict(cut))[1:]
        states = cut.end[:-1].detach().requires_grad_()
        missed = self.ahead(states) - coming
        reset, weight = cut.chunks.reset, None
        if reset is not None:
            parts = reset.split(cut.chunks.truncation)[1:]
            known = ~torch.stack([part.any(0) for part in parts])
            missed = missed * known[..., None]
            weight = known.flatten().to(states.dtype)
        error = 0.5 * self.auxiliary * missed.square().sum()
        rows = states.detach().flatten(0, 1), coming.flatten(0, 1), weight
        return rows, torch.autograd.grad(error, states)[0]

    def accumulate(
        self,
        entered: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        weight: Tensor | None = None,
        predicted: Tensor | None = None,
    ) -> Tensor:
        """As GradientEstimator's; with a context [R, C] where one was asked for.

        predicted: [R, S], forward(entered): of a linear map without context, or with its
            graph where ``keeps_graph``.
        """
        if predicted is not None and self.keeps_graph:
            return ops.regress(lambda _: predicted, entered, target, self.own_parameters(), weight)
        if predicted is not None:
            return self.fit_linear(entered, target, predicted)
        target, square = self.in_units(target, weight)
        if context is not None:
            entered = torch.cat([entered, context.to(entered.dtype)], -1)
        parts = self.parts
        hooked = any(map(has_hooks, self.layers)) or not all(part.is_leaf for part in parts)
        if hooked or len(self.norms):
            error = ops.regress(self.through, entered, target, self.own_parameters(), weight)
        elif context is None and weight is None:
            error = ops.accumulate_regression(entered, target, parts)
        else:
            error = ops.reference_regression(entered, target, parts, weight)
        return error if square is None else error * square

    @torch.no_grad()
    def fit_linear(self, entered: Tensor, target: Tensor, predicted: Tensor) -> Tensor:
        """The same where the residual is at hand: dW = e' s / R, db = the mean of e, e = g - target."""
        residual, each = predicted - target, 1 / max(1, len(target))
        (weight, bias), flat = self.parts, residual.flatten()
        if weight.requires_grad:
            # The product, scaled and added, in one pass.
            if weight.grad is None:
                # Into a tensor of its own: autocast leaves that product as it is.
                weight.grad = torch.empty_like(weight)
                torch.addmm(weight, residual.T, entered, beta=0, alpha=each, out=weight.grad)
            else:
                weight.grad.addmm_(residual.T, entered, alpha=each)
        if bias.requires_grad:
            found = residual.sum(0).mul_(each)
            bias.grad = found if bias.grad is None else bias.grad.add_(found)
        return torch.dot(flat, flat).mul_(0.5 * each)

    def extra_repr(self) -> str:
        text = f"scale={self.scale}, discount={self.discount}"
        for name in ("context_size", "normalise", "dense", "trace_decay", "auxiliary"):
            text += f", {name}={getattr(self, name)}" if getattr(self, name) else ""
        text += ", batch_norm=True" if len(self.norms) else ""
        return text if self.terminal_target else f"{text}, terminal_target=False"


@dataclass(frozen=True)
class DNIConfig(PredictorConfig, name="dni"):
    """a learned prediction of it: synthetic gradients"""

    label = "DNI"
    descends = True

    estimator_hidden: tuple | None = option(
        None, "widths of the hidden layers of the predictor, or the word linear for none", "UNITS",
        at_least=1, many=int, words=("linear",), shown="one layer as wide as the core",
    )  # fmt: skip
    reader: int | None = option(
        None,
        "units of a recurrent network that reads the steps of --context backwards and is joined with"
        " the state",
        "UNITS",
        at_least=1,
        shown="none: the state and they are one vector",
    )
    normalise: bool = option(
        False,
        "predict in units of the targets' running size, so that --estimator-lr means the same"
        " whatever it is",
    )
    auxiliary: float = option(
        0.0,
        "weight of the auxiliary task: to predict at a cut what the predictor will predict at the next one",
        "WEIGHT",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale == "auto" and self.auxiliary:
            raise ValueError("--scale auto measures what is injected: no --auxiliary")
        if self.reader and not self.context:
            raise ValueError(f"--reader goes with --context only; got {self.reader}")
        if self.reader and (self.normalise or self.trace_decay or self.auxiliary):
            raise ValueError(
                "--reader has units of its own: no --normalise, --trace-decay, --auxiliary"
            )

    def widths(self, setting: Setting) -> tuple[int, ...]:
        if self.estimator_hidden is None:
            return (setting.width,)
        if "linear" not in self.estimator_hidden:
            return self.estimator_hidden
        if len(self.estimator_hidden) > 1:
            raise ValueError("--estimator-hidden must be widths, or the word linear alone")
        return ()

    def make(self, setting: Setting, **common) -> GradientEstimator:
        setting.check_chunks(trace_decay=self.trace_decay, auxiliary=self.auxiliary)
        size, widths = setting.core.state_size, self.widths(setting)
        if self.reader is not None:
            step_size = setting.context_size(self.context)
            return Reader(size, self.reads, step_size, self.reader, widths, **common)
        estimator = SyntheticGradient(
            size,
            widths,
            **common,
            context_size=self.reads * setting.context_size(self.context),
            trace_decay=self.trace_decay,
            normalise=self.normalise,
            auxiliary=self.auxiliary,
        )
        estimator.reads = self.reads
        return estimator
