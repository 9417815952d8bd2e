"""The layers of a Deep as parts that do not wait for one another."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.data import Batch
from dnirnn.interface import Interface
from dnirnn.model import SequenceModel
from dnirnn.parallel import DecoupledParallel
from dnirnn.training.parts import Learned, PartsUpdater, share_of
from dnirnn.training.trainer import Trainer
from dnirnn.truncated import Truncated


class Layer(nn.Module):
    """One layer of a model's Deep, cut in time, with the encoder below the first, the readout above the last.

    It reads symbols [T, B], or the outputs of the layer below, and gives [T B, O], a row for each step of
    each sequence; the last one logits [T, B, V]. ``begin`` is given the state that a batch starts from.
    """

    def __init__(self, model: SequenceModel, place: int):
        super().__init__()
        core, truncated = model.truncated.core, model.truncated
        estimator = truncated.estimator.parts[place]
        self.cut = Truncated(core.cores[place], truncated.truncation, estimator)
        self.encoder = None if place else model.encoder
        self.readout = model.readout if place == len(core.cores) - 1 else None
        self.masks = core.masks[place - 1] if place and core.dropout else None
        self.residual, self.layer_dropout = core.residual and place > 0, core.dropout
        self.dropout = model.dropout
        self.state: Tensor | None = None

    def begin(self, state: Tensor, t: int, final: bool) -> None:
        self.state, self.t, self.final = state, t, final

    def forward(self, given: Tensor) -> tuple[Tensor, list[Interface]]:
        assert self.state is not None
        if self.encoder is not None:
            below = self.dropout(self.encoder(given))
        else:
            below = given.view(-1, len(self.state), given.shape[-1])
        reads = below
        if self.masks is not None and self.masks.training:
            kept = self.masks(below.shape[1], self.t, len(below))
            reads = below * kept / (1 - self.layer_dropout)
        output, self.state, interfaces = self.cut(reads, self.state, self.t, self.final)
        output = output + below if self.residual else output
        if self.readout is None:
            return output.flatten(0, 1), interfaces
        return self.readout(self.dropout(output)), interfaces


def in_layers(trainer: Trainer, staleness: int) -> PartsUpdater:
    """Updates of this process's layers of a model of symbols, the others in processes of their own.

    The model's core is a Deep, its estimator a ByPart; its ``cuts`` predict between the layers, a
    gradient for a layer's output at each step, conditioned on the symbol that is to be predicted there.
    """
    model, ranks, unit = trainer.model, trainer.ranks, trainer.updater.unit
    core = model.truncated.core
    own = share_of(len(core.cores), ranks.rank, ranks.size)
    layers = [Layer(model, place) for place in range(own.start, own.stop)]
    sizes = core.sizes[own]
    begin = sum(core.sizes[: own.start])
    columns = slice(begin, begin + sum(sizes))
    first, *fitted = trainer.optimizers

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        soft = () if batch.soft is None else (batch.soft,)
        nats = model.loss(logits, batch.y, *soft)
        return unit * (nats if batch.weight is None else nats * batch.weight).sum()

    cuts = list(model.cuts[own])
    part = DecoupledParallel(
        layers,
        cuts,
        loss,
        [(first, *fitted)] * len(layers),
        [first] * len(cuts),
        staleness=staleness,
        group=ranks.group,
    )

    def learn(batch: Batch, state: Tensor, t: int) -> Learned:
        for layer, one in zip(layers, state[:, columns].split(sizes, 1)):
            layer.begin(one, t, batch.final)
        context = None
        if cuts:
            symbols = cuts[0].context_size
            context = F.one_hot(batch.y.flatten(), symbols).to(state.dtype)
        found = part.learn(batch.x, batch, context, unit)
        ended = state.clone()
        ended[:, columns] = torch.cat([layer.state for layer in layers], 1)
        return Learned(float(found.get("loss", 0.0)) / unit, [float(one) for one in part.errors], ended)

    return PartsUpdater(trainer, part, learn, columns)
