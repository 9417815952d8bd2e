"""Reader: predicts the gradient from the state and from the steps that come next."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dnirnn.checks import check_flags, check_knobs, check_sequences, check_sizes
from dnirnn.estimators.base import GradientEstimator

NORM_DECAY = 0.99  # of the running mean norm of the targets, a fit


class Reader(GradientEstimator):
    """A narrow recurrent network backwards over the coming steps, joined with the state.

    With c_1 .. c_R what is known of the next R steps after the state s (inputs and targets; zeros
    where the sequence ends before), and r the running mean norm of the targets,

        q_R+1 = 0,  q_i = GRU(c_i, q_(i+1)),  g(s, c) = r MLP([s, q_1])

    as the true gradient is made backwards too. The MLP has ReLU between its layers, and its last
    one starts at zero. The regression is half the squared error, in units of r, summed over S,
    meaned over the rows; a target longer than ``clip`` r is shortened to that, since the gradients
    of recurrent networks have heavy tails and a handful of them would rule the fit.

    state_size: S of the core.
    reads: R.
    step_size: C, of what is known of a step. The context is [..., R C], the next step first.
    units: of the GRU.
    hidden: widths of the MLP's hidden layers.
    scale, discount, dense, terminal_target: as for SyntheticGradient.
    clip: in mean norms; None: targets as they are.

    Raises TypeError or ValueError for sizes below 1, or knobs that are negative or not finite.

    Source: the recurrent network of one coming step is the extra core in memory of Jaderberg et al.,
    Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017; with R of them, our own.
    """

    needs_context = True

    def __init__(
        self,
        state_size: int,
        reads: int,
        step_size: int,
        units: int = 64,
        hidden: Sequence[int] = (),
        scale: float = 0.1,
        discount: float = 0.1,
        *,
        dense: bool = False,
        terminal_target: bool = True,
        clip: float | None = 3.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(state_size=state_size, reads=reads, step_size=step_size, units=units)
        check_sequences(hidden=hidden)
        check_knobs(scale=scale, discount=discount)
        check_flags(dense=dense, terminal_target=terminal_target)
        if clip is not None:
            check_knobs(clip=clip)
            if not clip:
                raise ValueError(f"clip must be positive, or None; got {clip!r}")
        self.state_size, self.reads, self.step_size = state_size, reads, step_size
        self.context_size = reads * step_size
        self.scale, self.discount = float(scale), float(discount)
        self.dense, self.terminal_target, self.clip = dense, terminal_target, clip
        made = {"device": device, "dtype": dtype}
        self.reader = nn.GRU(step_size, units, **made)
        widths = [state_size + units, *hidden, state_size]
        self.layers = nn.ModuleList(nn.Linear(i, o, **made) for i, o in zip(widths, widths[1:]))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        # The mean norm of the targets, and the weight of all that is in it (from 0 to 1).
        self.register_buffer("mean_norm", torch.zeros(2, **made))

    @property
    def unit(self) -> Tensor:
        """The targets' running mean norm, a 0-d tensor; 0 before the first."""
        total, weight = self.mean_norm
        return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)

    def forward(self, state: Tensor, context: Tensor) -> Tensor:
        """The predicted gradient [..., S] at the state [..., S], with the context [..., R C]."""
        return self.unit * self.in_units(state, context)

    def in_units(self, state: Tensor, context: Tensor) -> Tensor:
        steps = context.to(state.dtype).reshape(-1, self.reads, self.step_size)
        _, read = self.reader(steps.transpose(0, 1).flip(0))
        value = torch.cat([state, read[0].view(*state.shape[:-1], -1)], -1)
        for layer in self.layers[:-1]:
            value = torch.relu(layer(value))
        return self.layers[-1](value)

    def accumulate(
        self,
        entered: Tensor,
        target: Tensor,
        context: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """As GradientEstimator's, with a context [R, C]; the error is in units of the targets."""
        weight = torch.ones_like(target[:, 0]) if weight is None else weight
        count = weight.sum().clamp_min(1)
        target = torch.where(weight[:, None] > 0, target, 0)
        target = self.bounded(target, weight)
        unit = self.unit
        with torch.enable_grad():
            missed = self.in_units(entered, context) - target / unit.clamp_min(
                torch.finfo(unit.dtype).tiny
            )
            error = (0.5 * missed.square().sum(-1) * weight).sum() / count
        parameters = [one for one in self.parameters() if one.requires_grad]
        for one, gradient in zip(parameters, torch.autograd.grad(error, parameters)):
            one.grad = gradient if one.grad is None else one.grad + gradient
        return error.detach() * unit.square()

    def bounded(self, target: Tensor, weight: Tensor) -> Tensor:
        """The targets, none longer than ``clip`` mean norms; moves that mean on."""
        norm = target.norm(dim=-1)
        if self.clip is not None:
            limit = torch.where(self.mean_norm[1] > 0, self.clip * self.unit, norm.max())
            norm, before = norm.minimum(limit), norm
            target = target * (norm / before.clamp_min(torch.finfo(norm.dtype).tiny))[:, None]
        sums = torch.stack([(norm * weight).sum(), weight.sum()])
        total, count = self.sum_over_ranks(sums)
        mean = total / count.clamp_min(1)
        share = (1 - NORM_DECAY) * (count > 0).to(mean.dtype)
        self.mean_norm.lerp_(torch.stack([mean, torch.ones_like(mean)]), share)
        return target

    def extra_repr(self) -> str:
        return f"reads={self.reads}, scale={self.scale}, discount={self.discount}, clip={self.clip}"
