"""Networks A and B of the digits task as parts that do not wait for one another."""

from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.data import Batch
from dnirnn.hierarchy_parallel import HierarchyParallel
from dnirnn.training.parts import Learned, PartsUpdater, share_of
from dnirnn.training.trainer import Trainer

NOT_ASKED = -1  # in the place of a count


class Encoder(nn.Module):
    """What network A reads of a picture, as it is in training."""

    def __init__(self, encoder: nn.Module, dropout: nn.Module):
        super().__init__()
        self.encoder, self.dropout = encoder, dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.encoder(x))


class Asked(nn.Module):
    """The loss of one network's counts, of its outputs [T, B, O] and a batch, times ``unit``."""

    def __init__(self, readout: nn.Module, dropout: nn.Module, place: int, unit: float):
        super().__init__()
        self.readout, self.dropout, self.place, self.unit = readout, dropout, place, unit

    def forward(self, outputs: Tensor, batch: Batch) -> Tensor:
        logits = self.readout(self.dropout(outputs)).flatten(0, 1)
        asked = batch.y[-len(outputs) :, :, self.place].flatten()
        return self.unit * F.cross_entropy(logits, asked, ignore_index=NOT_ASKED, reduction="sum")


def in_networks(trainer: Trainer, staleness: int) -> PartsUpdater:
    """Updates of this process's network, the other in a process of its own.

    The model's core is a Hierarchy, its estimator a ByPart; its ``cuts`` predict what is sent back to
    each network's word.
    """
    model, ranks, unit = trainer.model, trainer.ranks, trainer.updater.unit
    core, answers = model.truncated.core, model.readout
    share_of(2, ranks.rank, ranks.size)
    losses = [
        Asked(readout, model.dropout, place, unit)
        for place, readout in enumerate((answers.odd, answers.threes))
    ]
    part = HierarchyParallel(
        core,
        Encoder(model.encoder, model.dropout),
        losses,
        model.truncated.estimator.parts[:2],
        list(model.cuts),
        [tuple(trainer.optimizers)] * 2,
        staleness=staleness,
        group=ranks.group,
    )
    fast = core.sizes[0]
    columns = slice(0 if part.fast is not None else fast, None if part.slow is not None else fast)

    def learn(batch: Batch, state: Tensor, t: int) -> Learned:
        _, ended = part.learn(batch.x, batch, state, t, batch.final, unit)
        nats = sum(float(loss) / unit for loss in part.losses)
        return Learned(nats, [float(one) for one in part.errors], ended)

    return PartsUpdater(trainer, part, learn, columns)
