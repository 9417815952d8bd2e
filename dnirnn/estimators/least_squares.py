"""LeastSquares: a linear estimator that is solved for, not descended to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.checks import check_flags, check_knobs, check_sizes
from dnirnn.estimators.auto_scale import PredictorConfig
from dnirnn.estimators.base import GradientEstimator, Setting
from dnirnn.options import option, override
from dnirnn.renamed import TENSORS


class LeastSquares(GradientEstimator):
    """A linear estimator g(s) = W s + b, fitted by least squares on all targets, old ones fading.

    With u = [s, 1] (or [s, context, 1]) of the rows of a fit, G their targets, and means over rows,

        A <- forgetting A + (1 - forgetting) mean(u u')
        C <- forgetting C + (1 - forgetting) mean(G u')
        [W, b] = C (A + ridge m I)^-1, m the mean of A's diagonal, each time ``solve_every`` fits

    So it has no learning rate, and it tracks a core that moves: a target counts for about
    1 / (1 - forgetting) fits. Descent on the same error needs many more, because the units of a
    recurrent state are strongly correlated. Where the targets are noise, ridge holds its predictions
    near zero. It predicts zero until the first solution. It takes a matrix of S + 1 squared, and a
    solution takes (S + 1)^3 / 3 + 2 S (S + 1)^2 flops.

    state_size: S of the core.
    scale, discount: as for SyntheticGradient, and the targets too; here a scale of 1 and a discount
        near 1 are stable, where a descending estimator diverges.
    forgetting: from 0 to below 1.
    ridge: above 0.
    solve_every: fits from one solution to the next.
    context_size, dense, trace_decay, terminal_target: as for SyntheticGradient.

    The host reads when it is to solve, and whether it could: on a GPU it waits for that.

    W and b are parameters without a gradient: no optimiser moves them.

    Raises TypeError or ValueError for sizes below 1, numbers outside their range, or a trace_decay
    with ``dense``.

    Source: recursive least squares with a forgetting factor (Haykin, Adaptive Filter Theory, 2002,
    chapter 9); on bootstrapped targets, as LSTD has it for values (Bradtke and Barto, Linear
    Least-Squares Algorithms for Temporal Difference Learning, 1996), with the bootstrap of each
    target left as it was when it was seen.
    """

    graph_safe = False

    def __init__(
        self,
        state_size: int,
        scale: float = 1.0,
        discount: float = 0.9,
        *,
        forgetting: float = 0.97,
        ridge: float = 1e-3,
        solve_every: int = 4,
        context_size: int = 0,
        dense: bool = False,
        trace_decay: float = 0.0,
        terminal_target: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(state_size=state_size, solve_every=solve_every)
        check_sizes(0, context_size=context_size)
        check_knobs(
            scale=scale, discount=discount, trace_decay=trace_decay, forgetting=forgetting,
            ridge=ridge,
        )  # fmt: skip
        check_flags(dense=dense, terminal_target=terminal_target)
        if forgetting >= 1:
            raise ValueError(f"forgetting must be below 1; got {forgetting!r}")
        if ridge == 0:
            raise ValueError(f"ridge must be above 0; got {ridge!r}")
        if dense and trace_decay:
            raise ValueError(f"dense targets have no trace_decay; got {trace_decay!r}")
        self.state_size, self.context_size = state_size, context_size
        self.scale, self.discount = float(scale), float(discount)
        self.forgetting, self.ridge = float(forgetting), float(ridge)
        self.solve_every = solve_every
        self.dense, self.trace_decay = dense, float(trace_decay)
        self.terminal_target, self.needs_context = terminal_target, context_size > 0
        made = {"device": device, "dtype": dtype}
        features = state_size + context_size
        self.weight = nn.Parameter(torch.zeros(state_size, features, **made), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(state_size, **made), requires_grad=False)
        self.register_buffer("second_moments", torch.zeros(features + 1, features + 1, **made))
        self.register_buffer("target_moments", torch.zeros(state_size, features + 1, **made))
        self.register_buffer("fits", torch.zeros((), dtype=torch.int64, device=device))

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        for old, new in TENSORS.items():
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def weights(self) -> list[Tensor]:
        """As SyntheticGradient's: what the fused operator takes."""
        return [] if self.needs_context else [self.weight, self.bias]

    def forward(self, state: Tensor, context: Tensor | None = None) -> Tensor:
        """The predicted gradient [..., S] at the state [..., S], with the context [..., C]."""
        features = state if context is None else torch.cat([state, context.to(state.dtype)], -1)
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def accumulate(
        self,
        entered: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Takes the rows into A and C, and solves in its turn; nothing is added to a .grad.

        Returns the regression error before that.
        """
        weight = torch.ones_like(entered[:, 0]) if weight is None else weight
        each = 0.5 * (target - self(entered, context)).square().sum(-1)
        rows = self.sum_over_ranks(weight.sum()).clamp_min(1)  # nothing is divided by zero
        error = self.sum_over_ranks((each * weight).sum()) / rows
        parts = [entered] if context is None else [entered, context.to(entered.dtype)]
        features = torch.cat([*parts, torch.ones_like(entered[:, :1])], -1)
        counted = features * ((1 - self.forgetting) / rows * weight)[:, None]
        for kept, left in ((self.second_moments, features), (self.target_moments, target)):
            if self.ranks is None:
                kept.addmm_(left.T, counted, beta=self.forgetting)
            else:
                kept.mul_(self.forgetting).add_(self.sum_over_ranks(left.T @ counted))
        self.fits += 1
        if self.fits % self.solve_every == 0:
            self.solve()
        return error

    def solve(self) -> None:
        """Sets W and b by A and C as they are; leaves them where the solution is not finite."""
        regular = self.second_moments.clone()
        diagonal = regular.diagonal()
        diagonal += self.ridge * diagonal.mean()
        factor, _ = torch.linalg.cholesky_ex(regular)
        found = torch.cholesky_solve(self.target_moments.T, factor).T
        if found.isfinite().all():
            self.weight.copy_(found[:, :-1])
            self.bias.copy_(found[:, -1])

    def extra_repr(self) -> str:
        text = f"scale={self.scale}, discount={self.discount}, forgetting={self.forgetting}"
        return f"{text}, ridge={self.ridge}, solve_every={self.solve_every}"


@dataclass(frozen=True)
class LeastSquaresConfig(PredictorConfig, name="least-squares"):
    """a prediction that is linear and solved for"""

    label = "least squares"

    scale: float | str = override(PredictorConfig, "scale", default=1.0)
    discount: float | None = override(
        PredictorConfig, "discount", shown="0.9; 0 with --scale auto, which multiplies it"
    )
    forgetting: float = option(
        0.97, "what a solution leaves of the weight of older targets, each update", "FRACTION",
        at_least=0, below=1,
    )  # fmt: skip
    ridge: float = option(
        1e-3,
        "what is added to the squares of the state, as a fraction of them: the more, the nearer to"
        " zero its predictions are where the targets are noise",
        "FRACTION",
        above=0,
    )
    solve_every: int = option(4, "updates from one solution to the next", "UPDATES", at_least=1)

    usual_discount = 0.9

    def make(self, setting: Setting, **common: Any) -> GradientEstimator:
        setting.check_chunks(trace_decay=self.trace_decay)
        estimator = LeastSquares(
            setting.core.state_size,
            **common,
            context_size=self.reads * setting.context_size(self.context),
            trace_decay=self.trace_decay,
            forgetting=self.forgetting,
            ridge=self.ridge,
            solve_every=self.solve_every,
        )
        estimator.reads = self.reads
        return estimator
