"""PartsUpdater: the updates of a network whose parts do not wait for one another."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dnirnn.data import Batch
from dnirnn.training.optimizers import norm_of, rescale
from dnirnn.training.trainer import Trainer


class Learned(NamedTuple):
    """The figures of an update of this process's parts.

    nats: of the batch, of the losses that are here. errors: those of the regressions that were done.
    state: [B, S], after the batch; of other processes' parts it may be old.
    """

    nats: float
    errors: list[float]
    state: Tensor


class PartsUpdater:
    """Updates of this process's parts; as dnirnn.training.updater.Updater to a trainer.

    Between two readings the processes don't wait for one another but as ``part`` says; at a reading
    each gets the others' parts, so that the first one can measure and save the whole. A part steps
    as soon as it can: what is not finite is found after the update.

    part: this process's, a module with ``settle`` and ``close`` (see dnirnn.DecoupledParallel). Its
        parameters and buffers are among the trainer's model's.
    learn: makes an update of (batch, state, t).
    columns: what of the state is this process's.

    The trainer's clip and min_norm bound the gradient of each part, as it steps.
    """

    full, bad, undoes = False, 0.0, False

    def __init__(
        self,
        trainer: Trainer,
        part: nn.Module,
        learn: Callable[[Batch, Tensor, int], Learned],
        columns: slice = slice(0, 0),
    ):
        self.model, self.ranks, self.optimizers = trainer.model, trainer.ranks, trainer.optimizers
        self.part, self.learn, self.columns = part, learn, columns
        self.figures: list[list[float]] = []
        self.state: Tensor | None = None
        mine = {id(t) for t in (*part.parameters(), *part.buffers())}
        known = self.model.state_dict(keep_vars=True)
        self.names = [name for name, tensor in known.items() if id(tensor) in mine]
        config = trainer.config
        bounds = (config.min_norm, config.clip), (config.estimator_min_norm, config.estimator_clip)
        for optimizer, (least, most) in zip(self.optimizers, bounds):
            if least is not None or most is not None:
                optimizer.register_step_pre_hook(bounded(least, most))

    def __call__(self, batch: Batch, state: Tensor, t: int) -> Tensor:
        found = self.learn(batch, state, t)
        self.figures.append([found.nats, sum(found.errors), len(found.errors)])
        self.state = found.state
        return found.state

    def read(self) -> list[list[float]]:
        self.part.settle()
        figures, self.figures = torch.tensor(self.figures, dtype=torch.float64).view(-1, 3), []
        self.exchange()
        return [
            [nats, error / max(1.0, count), 0.0, 0.0]
            for nats, error, count in self.ranks.sum(figures).tolist()
        ]

    def exchange(self) -> None:
        """Gives every process the parts of all, and what their optimizers know of them."""
        whole = self.model.state_dict()
        mine = [
            {i: one.state[p] for i, p in enumerate(params(one)) if p in one.state and self.owns(p)}
            for one in self.optimizers
        ]
        columns = None if self.state is None else self.state[:, self.columns]
        own = ({name: whole[name] for name in self.names}, mine, self.columns, columns)
        for rank, (tensors, states, where, found) in enumerate(self.ranks.from_each(own)):
            if rank == self.ranks.rank:
                continue
            self.model.load_state_dict(tensors, strict=False)
            for one, known in zip(self.optimizers, states):
                one.state.update({params(one)[i]: state for i, state in known.items()})
            if self.state is not None:
                self.state[:, where] = found
        for one in self.optimizers:
            # In one order, whoever stepped first.
            ordered = {p: one.state[p] for p in params(one) if p in one.state}
            one.state.clear()
            one.state.update(ordered)

    def owns(self, parameter: Tensor) -> bool:
        return any(parameter is p for p in self.part.parameters())

    def forget(self) -> None:
        self.figures = []

    def close(self) -> None:
        self.part.close()


def share_of(parts: int, rank: int, ranks: int) -> slice:
    """Which of the parts a rank holds. Raises ValueError for fewer parts than ranks."""
    if ranks > parts:
        raise ValueError(f"--parallel decoupled has {parts} parts to share, one a process; got {ranks}")
    return slice(parts * rank // ranks, parts * (rank + 1) // ranks)


def bounded(least: float | None, most: float | None) -> Callable:
    """What brings a gradient within its bounds before an optimizer steps along it."""

    def before(optimizer: torch.optim.Optimizer, *_) -> None:
        gradients = [p.grad for p in params(optimizer) if p.grad is not None]
        rescale(gradients, float(norm_of(gradients)), least, most)

    return before


def params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]
