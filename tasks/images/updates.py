"""Updates of the images task whose parts do not wait for one another."""

from torch import Tensor
from torch.nn import functional as F

from dnirnn.data import Batch
from dnirnn.parallel import DecoupledParallel
from dnirnn.tasks.images.network import ImageModel, one_hot
from dnirnn.tasks.images.options import ImagesOptions
from dnirnn.training.parts import Learned, PartsUpdater, share_of
from dnirnn.training.trainer import Trainer
from dnirnn.training.updater import FIGURES


class DecoupledUpdater:
    """Updates of parts that do not wait for one another; as dnirnn.training.updater.Updater to a trainer.

    Every part steps as soon as it can, so what is not finite is found after the update. The loss
    in a row is that of the last time that the last part was updated.
    """

    full, bad, undoes = True, 0.0, False

    def __init__(self, model: ImageModel):
        self.model, self.figures, self.loss = model, [], 0.0

    def __call__(self, batch: Batch, state: Tensor, t: int) -> Tensor:
        model, y = self.model, batch.y[0]
        if model.state_size:
            model.recall(state)
        found = model.decoupled.learn(model.pictures(batch.x), y, one_hot(y))
        if "loss" in found:
            self.loss = float(found["loss"])
        error = float(found.get("estimator_error", 0.0))
        self.figures.append(dict(nats=self.loss * len(y), estimator_error=error))
        return model.kept() if model.state_size else state

    def read(self) -> list[list[float]]:
        figures, self.figures = self.figures, []
        return [[row.get(name, 0.0) for name in FIGURES] for row in figures]

    def forget(self) -> None:
        self.figures = []


def in_parts(trainer: Trainer, staleness: int) -> PartsUpdater:
    """Updates of this process's parts of a network, the others in processes of their own."""
    model, ranks = trainer.model, trainer.ranks
    own = share_of(len(model.parts), ranks.rank, ranks.size)
    parts, cuts = model.parts[own], model.truncated.estimator[own]
    core, fitted = [*trainer.optimizers, None][:2]
    part = DecoupledParallel(
        list(parts),
        list(cuts),
        F.cross_entropy,
        [core] * len(parts),
        [fitted] * len(cuts),
        staleness=staleness,
        group=ranks.group,
    )

    def learn(batch: Batch, state: Tensor, t: int) -> Learned:
        y = batch.y[0]
        found = part.learn(model.pictures(batch.x), y, one_hot(y))
        return Learned(float(found.get("loss", 0.0)) * len(y), [float(one) for one in part.errors], state)

    return PartsUpdater(trainer, part, learn)


def attach(trainer: Trainer, options: ImagesOptions) -> None:
    """Has the trainer's updates made part by part, where they are not to be in lockstep.

    An optimizer steps what has a gradient: one serves all parts, each in its turn.
    """
    if options.parallel.name == "decoupled":
        trainer.updater = in_parts(trainer, options.staleness)
        return
    if options.update.name == "lockstep":
        return
    decoupled = trainer.model.decoupled
    optimizers = [*trainer.optimizers, None][:2]
    decoupled.optimizers = [optimizers[0]] * len(decoupled.parts)
    decoupled.estimator_optimizers = [optimizers[1]] * len(decoupled.estimators)
    decoupled.synthetic_input_optimizers = optimizers[1:] * len(trainer.model.synthetic_inputs)
    trainer.updater = DecoupledUpdater(trainer.model)
