"""Updates of the images task whose parts do not wait for one another."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dnirnn.data import Batch
from dnirnn.distributed import PartRanks
from dnirnn.parallel import DecoupledParallel
from dnirnn.tasks.images.network import ImageModel, one_hot
from dnirnn.tasks.images.options import ImagesOptions
from dnirnn.training.trainer import Trainer
from dnirnn.training.updater import TOLD


class DecoupledUpdater:
    """Updates of parts that do not wait for one another; as dnirnn.training.updater.Updater to a trainer.

    Every part steps as soon as it can, so what is not finite is found after the update. The loss
    that is told is that of the last time that the last part was updated.
    """

    full, bad, undoes = True, 0.0, False

    def __init__(self, model: ImageModel):
        self.model, self.told, self.loss = model, [], 0.0

    def __call__(self, batch: Batch, state: Tensor, t: int) -> Tensor:
        model, y = self.model, batch.y[0]
        if model.state_size:
            model.recall(state)
        found = model.decoupled.learn(model.pictures(batch.x), y, one_hot(y))
        if "loss" in found:
            self.loss = float(found["loss"])
        error = float(found.get("estimator_error", 0.0))
        self.told.append(dict(nats=self.loss * len(y), estimator_error=error))
        return model.kept() if model.state_size else state

    def read(self) -> list[list[float]]:
        told, self.told = self.told, []
        return [[row.get(name, 0.0) for name in TOLD] for row in told]

    def forget(self) -> None:
        self.told = []


class ParallelUpdater:
    """Updates of this process's parts of a network; as dnirnn.training.updater.Updater to a trainer.

    Between two readings the processes don't wait for one another but as DecoupledParallel says; at a
    reading each gets the others' parts, so that the first one can measure and save the whole.
    """

    full, bad, undoes = False, 0.0, False

    def __init__(self, trainer: Trainer, staleness: int):
        model, self.ranks, self.told = trainer.model, trainer.ranks, []
        size, rank, last = self.ranks.size, self.ranks.rank, len(model.parts)
        if size > last:
            raise ValueError(f"--parallel decoupled has {last} parts to share, one a process; got {size}")
        own = slice(last * rank // size, last * (rank + 1) // size)
        parts, cuts = model.parts[own], model.truncated.estimator[own]
        self.model, self.optimizers = model, trainer.optimizers
        core, fitted = [*self.optimizers, None][:2]
        self.part = DecoupledParallel(
            list(parts),
            list(cuts),
            F.cross_entropy,
            [core] * len(parts),
            [fitted] * len(cuts),
            staleness=staleness,
            group=self.ranks.group,
        )
        mine = {id(t) for one in (parts, cuts) for t in (*one.parameters(), *one.buffers())}
        self.names = [name for name, t in model.state_dict(keep_vars=True).items() if id(t) in mine]

    def __call__(self, batch: Batch, state: Tensor, t: int) -> Tensor:
        y = batch.y[0]
        found = self.part.learn(self.model.pictures(batch.x), y, one_hot(y))
        nats = float(found.get("loss", 0.0)) * len(y)
        self.told.append([nats, float(found.get("estimator_error", 0.0)), 0.0, 0.0])
        return state

    def read(self) -> list[list[float]]:
        self.part.settle()
        told, self.told = torch.tensor(self.told, dtype=torch.float64), []
        self.exchange()
        told = self.ranks.sum(told)
        told[:, 1] /= max(1, self.ranks.size - 1)
        return told.tolist()

    def exchange(self) -> None:
        """Gives every process the parts of all, and what their optimizers know of them."""
        whole = self.model.state_dict()
        mine = [
            {i: one.state[p] for i, p in enumerate(params(one)) if p in one.state and self.owns(p)}
            for one in self.optimizers
        ]
        for rank, (tensors, states) in enumerate(
            self.ranks.from_each(({name: whole[name] for name in self.names}, mine))
        ):
            if rank == self.ranks.rank:
                continue
            self.model.load_state_dict(tensors, strict=False)
            for one, known in zip(self.optimizers, states):
                one.state.update({params(one)[i]: state for i, state in known.items()})

    def owns(self, parameter: Tensor) -> bool:
        return any(parameter is p for p in self.part.parameters())

    def forget(self) -> None:
        self.told = []

    def close(self) -> None:
        self.part.close()


def params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]


def attach(trainer: Trainer, options: ImagesOptions) -> None:
    """Has the trainer's updates made part by part, where they are not to be in lockstep.

    An optimizer steps what has a gradient: one serves all parts, each in its turn.
    """
    if options.parallel.name == "decoupled":
        if not isinstance(trainer.ranks, PartRanks):
            raise ValueError("--parallel decoupled takes several processes: start it with torchrun")
        trainer.updater = ParallelUpdater(trainer, options.staleness)
        return
    if options.update.name == "lockstep":
        return
    decoupled = trainer.model.decoupled
    optimizers = [*trainer.optimizers, None][:2]
    decoupled.optimizers = [optimizers[0]] * len(decoupled.parts)
    decoupled.estimator_optimizers = [optimizers[1]] * len(decoupled.estimators)
    decoupled.synthetic_input_optimizers = optimizers[1:] * len(trainer.model.synthetic_inputs)
    trainer.updater = DecoupledUpdater(trainer.model)
