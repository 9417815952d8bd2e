"""ByPart: an estimator for each part of a state."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnirnn.checks import check_list, check_sequences
from dnirnn.estimators.base import GradientEstimator, ZeroGradient

ALIKE = ("scale", "discount", "dense", "trace_decay", "terminal_target")


class ByPart(GradientEstimator):
    """g(s) = [g_1(s_1), ..., g_P(s_P)]: each part of a state is predicted for from itself alone.

    So a core whose parts are in different processes, as the layers of a Deep, can be cut in time
    in each of them: estimator p is fitted where part p is.

    estimators: one a part, none that needs a context, and all alike in scale, discount, dense,
        trace_decay and terminal_target, but for ZeroGradients.
    sizes: of the parts, whose sum is the state's.

    Raises TypeError or ValueError for estimators that don't fit these.
    """

    def __init__(self, estimators: Sequence[GradientEstimator], sizes: Sequence[int]):
        super().__init__()
        check_list("estimators", estimators, GradientEstimator)
        check_sequences(sizes=sizes)
        if len(estimators) != len(sizes):
            raise ValueError(f"estimators must be as many as sizes, {len(sizes)}; got {len(estimators)}")
        live = [one for one in estimators if not isinstance(one, ZeroGradient)] or estimators
        for name in ALIKE:
            values = {getattr(one, name) for one in live}
            if len(values) > 1:
                raise ValueError(f"estimators must all have one {name}; got {sorted(values)}")
            setattr(self, name, values.pop())
        if any(one.needs_context for one in live):
            raise ValueError("estimators must need no context: each sees its own part alone")
        self.parts, self.sizes, self.state_size = nn.ModuleList(estimators), list(sizes), sum(sizes)
        self.graph_safe = all(estimator.graph_safe for estimator in estimators)

    def is_used(self) -> bool:
        return any(part.is_used() for part in self.parts)

    def forward(self, state: Tensor) -> Tensor:
        each = zip(self.parts, state.split(self.sizes, -1))
        return torch.cat([part(one) for part, one in each], -1)

    def accumulate(
        self, entered: Tensor, target: Tensor, *context: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        each = zip(self.parts, entered.split(self.sizes, -1), target.split(self.sizes, -1))
        errors = [part.accumulate(state, aim, weight=weight) for part, state, aim in each]
        return torch.stack(errors).sum()
