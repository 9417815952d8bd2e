"""DiagonalGradient: a linear estimator in which every unit reads itself alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import ops
from dnirnn.checks import check_flags, check_knobs, check_sizes
from dnirnn.estimators.auto_scale import PredictorConfig
from dnirnn.estimators.base import GradientEstimator, Setting


class DiagonalGradient(GradientEstimator):
    """Predicts g(s) = w * s + b, unit by unit; with a context c of the coming steps, + V c.

    2 S parameters, and 2 S flops a row, where SyntheticGradient's linear map has S^2: for states of
    thousands of units, and as a baseline of what an estimator gains by reading other units than the
    one whose gradient it predicts. It is exact where the loss pulls every unit to a place of its own.

    state_size: S of the core. context_size: C.
    scale, discount, dense, trace_decay, terminal_target: as for SyntheticGradient.

    All parameters start at zero: a fresh one injects nothing.

    Raises TypeError or ValueError naming the argument that does not fit.

    Source: the linear synthetic gradient of Jaderberg et al. 2017 (arXiv 1608.05343), its matrix
    diagonal.
    """

    def __init__(
        self,
        state_size: int,
        scale: float = 0.1,
        discount: float = 0.1,
        *,
        context_size: int = 0,
        dense: bool = False,
        trace_decay: float = 0.0,
        terminal_target: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(state_size=state_size)
        check_sizes(0, context_size=context_size)
        check_knobs(scale=scale, discount=discount, trace_decay=trace_decay)
        check_flags(dense=dense, terminal_target=terminal_target)
        if dense and trace_decay:
            raise ValueError(f"dense targets have no trace_decay; got {trace_decay!r}")
        self.state_size, self.context_size = state_size, context_size
        self.scale, self.discount = float(scale), float(discount)
        self.dense, self.trace_decay = dense, float(trace_decay)
        self.terminal_target, self.needs_context = terminal_target, context_size > 0
        self.weight = nn.Parameter(torch.zeros(state_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(state_size, device=device, dtype=dtype))
        if context_size:
            shape = state_size, context_size
            self.of_context = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

    def forward(self, state: Tensor, context: Tensor | None = None) -> Tensor:
        """The predicted gradient [..., S] at the state [..., S], with the context [..., C]."""
        own = torch.addcmul(self.bias, self.weight, state)
        return own if context is None else own + F.linear(context.to(state.dtype), self.of_context)

    def accumulate(
        self, entered: Tensor, target: Tensor, *context: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """As GradientEstimator's."""
        parameters = list(self.parameters())
        return ops.regress(lambda s: self(s, *context), entered, target, parameters, weight)

    def extra_repr(self) -> str:
        return f"{self.state_size}, scale={self.scale}, discount={self.discount}"


@dataclass(frozen=True)
class DiagonalConfig(PredictorConfig, name="diagonal"):
    """a learned prediction of each unit from itself: 2 parameters a unit"""

    label = "diagonal"
    descends = True

    def make(self, setting: Setting, **common: Any) -> GradientEstimator:
        setting.check_chunks(trace_decay=self.trace_decay)
        estimator = DiagonalGradient(
            setting.core.state_size,
            **common,
            context_size=self.reads * setting.context_size(self.context),
            trace_decay=self.trace_decay,
        )
        estimator.reads = self.reads
        return estimator
