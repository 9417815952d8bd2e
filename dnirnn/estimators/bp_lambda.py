"""BPLambda: synthetic gradients learned online by eligibility traces."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.boundary import Interface
from dnirnn.checks import check_flags, check_knobs, check_sizes
from dnirnn.estimators.base import EstimatorConfig, GradientEstimator, Setting
from dnirnn.options import option


class BPLambda(GradientEstimator):
    """A linear estimator g(s) = W s + b, fitted by TD(lambda): BP(lambda).

    With s_n the state that chunk n starts from, L_n its loss, J_n = d s_(n+1) / d s_n, and g = 0
    where the sequence ends:

        delta_n = dL_n / ds_n + discount J_n' g(s_(n+1)) - g(s_n)
        e_n     = discount trace_decay J_(n-1) e_(n-1) + dg(s_n) / d(W, b)
        the gradient added to (W, b) is - e_n' delta_n, meaned over rows

    Summed over a sequence at fixed weights these are the gradients of the forward view, the
    regression of SyntheticGradient(trace_decay=...) with the whole sequence in one call; but here
    a call needs to hold one chunk only, however far the trace reaches. With truncation 1, as the
    paper has it, nothing is propagated back through time.

    The trace, [B, S, S (S + 1)], is a buffer that goes from call to call, so rows must be the same
    sequences from call to call (no micro-batches); it is cleared where a sequence ends. J_n takes S
    backward passes through the chunks. Both are for small networks: for larger ones the forward
    view serves.

    state_size, batch_size: S, B.
    trace_decay: lambda, 0 to 1.
    scale, discount: as for SyntheticGradient; the discount is the paper's gamma.
    terminal_target: as for SyntheticGradient; such a row has no trace.
    memory_limit: bytes that the trace may take.

    Raises ValueError for sizes below 1, numbers outside their range, or a trace above the limit,
    saying its size.

    Source: Pemberton and Costa, BP(lambda): Online Learning via Synthetic Gradients, TMLR 2024.
    """

    needs_jacobian = True
    needs_vjp = False

    def __init__(
        self,
        state_size: int,
        batch_size: int,
        trace_decay: float = 0.9,
        scale: float = 0.1,
        discount: float = 0.1,
        *,
        terminal_target: bool = True,
        memory_limit: int = 2**30,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(state_size=state_size, batch_size=batch_size, memory_limit=memory_limit)
        check_knobs(scale=scale, discount=discount, trace_decay=trace_decay)
        check_flags(terminal_target=terminal_target)
        shape = (batch_size, state_size, state_size * (state_size + 1))
        dtype = dtype or torch.get_default_dtype()
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        if size > memory_limit:
            raise ValueError(
                f"the trace of a batch of {batch_size} and a state of {state_size} takes"
                f" {size / 1e9:,.2f} GB ({batch_size} x {state_size} x {state_size} x"
                f" {state_size + 1} numbers), memory_limit is {memory_limit / 1e9:,.2f} GB:"
                " lower them, or use SyntheticGradient(trace_decay=...)"
            )
        self.state_size, self.trace_decay = state_size, float(trace_decay)
        self.scale, self.discount = float(scale), float(discount)
        self.terminal_target = terminal_target
        made = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.zeros(state_size, state_size, **made))
        self.bias = nn.Parameter(torch.zeros(state_size, **made))
        # What of g(s_n)'s derivative arrives in the state that the next call starts from.
        self.register_buffer("trace", torch.zeros(shape, **made))

    def forward(self, state: Tensor) -> Tensor:
        return F.linear(state, self.weight, self.bias)

    def bootstrap(self, cut: Interface) -> Tensor | None:
        # Never None: its targets have a pass of their own, before which the graph is there to refine.
        boot = super().bootstrap(cut)
        return cut.synthetic if boot is None else boot

    def refine(self, cut: Interface, target: Tensor, boot: Tensor) -> Tensor:
        """The target as it is; keeps the Jacobians [N, B, S, S], zero over a sequence's end."""
        rows = []
        for i in range(cut.end.shape[-1]):
            seed = torch.zeros_like(cut.end)
            seed[..., i].fill_(1)
            rows += torch.autograd.grad(
                cut.end, cut.probe, seed, retain_graph=True, materialize_grads=True
            )
        cut.kept["jacobian"] = cut.crossing(torch.stack(rows, 2))
        return target

    def fit(self, cut: Interface, target: Tensor) -> dict[str, Tensor]:
        start, target, _, weighed = cut.rows(target)
        error = self.accumulate(start, target, cut.kept["jacobian"], **weighed)
        return {"estimator_error": error}

    def accumulate(
        self,
        entered: Tensor,
        target: Tensor,
        jacobian: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Adds to .grad, and moves the trace on; half the squared delta, meaned over rows.

        entered, target: [R, S], chunk by chunk, then rows of states in which a sequence ends.
        jacobian: [N, B, S, S], zero where a sequence ends.
        weight: [R], or None; as GradientEstimator's. The first N B rows always count.

        Raises ValueError where B is not batch_size.
        """
        chunks, batch, size, _ = jacobian.shape
        if batch != len(self.trace):
            raise ValueError(f"batch_size is {len(self.trace)}; got a batch of {batch}")
        with torch.no_grad():
            delta = target - self(entered)
            rows_that_count = len(entered)
            if weight is not None:
                delta, rows_that_count = delta * weight[:, None], weight.sum()
            extended = F.pad(entered, (0, 1), value=1.0)  # dg_i / d(W, b)_i, for every i
            found = torch.zeros_like(self.trace[0, 0])
            trace = self.trace
            for n in range(chunks):
                rows = slice(n * batch, (n + 1) * batch)
                trace = trace.clone()
                each = trace.view(batch, size, size, size + 1).diagonal(dim1=1, dim2=2)
                each += extended[rows, :, None]  # [B, S + 1, S]
                found += torch.einsum("bi,bip->p", delta[rows], trace)
                trace = self.discount * self.trace_decay * torch.bmm(jacobian[n], trace)
            self.trace.copy_(trace)
            ended = slice(chunks * batch, None)
            found = found.view(size, size + 1) + delta[ended].T @ extended[ended]
            found = -found / rows_that_count
            for parameter, gradient in ((self.weight, found[:, :-1]), (self.bias, found[:, -1])):
                if parameter.requires_grad:
                    gradient = gradient if parameter.grad is None else parameter.grad + gradient
                    parameter.grad = gradient.contiguous()
            return 0.5 * delta.square().sum() / rows_that_count

    def extra_repr(self) -> str:
        return f"trace_decay={self.trace_decay}, scale={self.scale}, discount={self.discount}"


@dataclass(frozen=True)
class BPLambdaConfig(EstimatorConfig, name="bp-lambda"):
    """a prediction that is linear and learned by eligibility traces, for small networks"""

    label = "BP(lambda)"
    fitted = descends = True

    scale: float = option(
        0.1, "multiplies a synthetic gradient where it is injected into the core", at_least=0,
        may_change=True,
    )  # fmt: skip
    discount: float = option(
        0.1, "multiplies a synthetic gradient where it enters the predictor's target", at_least=0,
        may_change=True,
    )  # fmt: skip
    trace_decay: float = option(
        0.9,
        "lambda of the predictor's targets, 0 to 1: how much they go by the losses of later chunks and"
        " not by its own word",
        "FRACTION",
        at_least=0,
    )
    no_terminal_target: bool = option(
        False, "do not teach the predictor that nothing comes after a sequence's end"
    )

    def build(self, setting: Setting) -> GradientEstimator:
        if setting.pieces:
            raise ValueError("--estimator bp-lambda follows its sequences: no --micro-batch")
        return BPLambda(
            setting.core.state_size,
            setting.batch,
            self.trace_decay,
            self.scale,
            self.discount,
            terminal_target=not self.no_terminal_target,
        )
