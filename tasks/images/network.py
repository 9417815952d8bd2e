"""The network of the images task: parts between cuts, and what stands at the cuts."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import (
    Decoupled,
    GradientEstimator,
    Interface,
)
from dnirnn.data import Batch
from dnirnn.decoupled import Sent
from dnirnn.tasks.images.options import CLASSES, KERNEL, ImagesOptions


class Cuts(nn.ModuleList):
    """The estimators of all cuts: what a trainer takes for one.

    scale: what share of each one's own scale is sent back.
    """

    needs_context = False
    graph_safe = True
    reads = 0

    def __init__(self, estimators: list[GradientEstimator]):
        super().__init__(estimators)
        self.own = [estimator.scale for estimator in estimators]
        self.share = 1.0

    @property
    def scale(self) -> float:
        return self.share

    @scale.setter
    def scale(self, share: float) -> None:
        self.share = share
        for estimator, own in zip(self, self.own):
            estimator.scale = share * own


class Truncation(nn.Module):
    """What a trainer asks of a model's cuts: an image is a sequence of one step."""

    truncation = 1
    open_cuts = None
    overlap = 0

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.estimator = cuts


class ImageModel(nn.Module):
    """Parts between cuts, and their output for an image: logits [B, 10].

    parts: in order; shape: of an image. through: nothing is cut, and estimators are fitted.
    """

    def __init__(
        self,
        parts: list[nn.Module],
        estimators: list[GradientEstimator],
        synthetic_inputs: list[nn.Module],
        shape: tuple[int, ...],
        options: ImagesOptions,
    ):
        super().__init__()
        self.parts, self.shape = nn.ModuleList(parts), shape
        self.truncated = Truncation(Cuts(estimators))
        self.synthetic_inputs = nn.ModuleList(synthetic_inputs)
        self.through = options.estimator.name == "true"
        decoupled = Decoupled(
            parts,
            list(estimators),
            F.cross_entropy,
            [None] * len(parts),
            [None] * len(estimators),
            update=options.update.name,
            probability=options.update.update_probability,
            synthetic_inputs=synthetic_inputs or None,
            synthetic_input_optimizers=[None] * len(synthetic_inputs),
        )
        # No submodule of this one: its parts are, once.
        object.__setattr__(self, "decoupled", decoupled)
        with torch.no_grad():
            self.eval()
            x, self.sent_shapes = torch.zeros(1, *shape), []
            for part in self.parts[:-1]:
                x = part(x)
                self.sent_shapes.append(x.shape[1:])
            self.train()

    def initial_state(self, batch_size: int) -> Tensor:
        """[B, S]: what the parts last sent, where they go by it, as :meth:`kept` has it."""
        return torch.zeros(batch_size, self.state_size, device=next(self.parameters()).device)

    @property
    def state_size(self) -> int:
        random = self.decoupled.update == "random" and not len(self.synthetic_inputs)
        return sum(2 + shape.numel() for shape in self.sent_shapes) if random else 0

    def kept(self) -> Tensor:
        """What was last sent, with its rows' labels and whether anything was, as one tensor."""
        found = []
        for sent, shape in zip(self.decoupled.sent, self.sent_shapes):
            if sent is None:
                found.append(torch.zeros(self.rows, 2 + shape.numel(), device=self.place))
            else:
                more = torch.stack([sent.y.to(sent.h.dtype), torch.ones_like(sent.h.flatten(1)[:, 0])], 1)
                found.append(torch.cat([sent.h.flatten(1), more], 1))
        return torch.cat(found, 1)

    def recall(self, state: Tensor) -> None:
        """Goes on from what was :meth:`kept`."""
        self.rows, self.place = len(state), state.device
        parts = state.split([2 + shape.numel() for shape in self.sent_shapes], 1)
        for i, (part, shape) in enumerate(zip(parts, self.sent_shapes)):
            y = part[:, -2].long()
            known = Sent(part[:, :-2].reshape(-1, *shape), y, one_hot(y))
            self.decoupled.sent[i] = known if bool(part[0, -1]) else None

    def pictures(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.shape)

    def forward(
        self, batch: Batch, state: Tensor, t0: int = 0
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        """(nats [1, B], the state, the interfaces of all cuts), as a SequenceModel's."""
        cuts = self.truncated.estimator
        output, interfaces = self.decoupled.interfaces(
            self.pictures(batch.x), one_hot(batch.y[0]), through=self.through or cuts.scale == 0
        )
        nats = F.cross_entropy(output, batch.y[0], reduction="none")
        return nats[None], state, interfaces

    def logits(self, x: Tensor) -> Tensor:
        return self.decoupled(self.pictures(x))

    def estimator_parameters(self) -> list[nn.Parameter]:
        """Those of the estimators, and of the models of inputs."""
        return [*self.truncated.estimator.parameters(), *self.synthetic_inputs.parameters()]

    def core_parameters(self) -> list[nn.Parameter]:
        return list(self.parts.parameters())


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, CLASSES).float()


def layers_of(options: ImagesOptions, shape: tuple[int, int, int]) -> list[nn.Sequential]:
    """Its layers, then its readout."""
    channels, height, width = shape
    found, hidden = [], options.hidden
    if options.network == "fcn":
        sizes = [channels * height * width, *[hidden] * options.layers]
        for inward, outward in zip(sizes, sizes[1:]):
            layer = nn.Linear(inward, outward, bias=False)
            found.append(nn.Sequential(layer, nn.BatchNorm1d(outward), nn.ReLU()))
        found[0].insert(0, nn.Flatten())
        return [*found, nn.Sequential(nn.Linear(sizes[-1], CLASSES))]
    for i in range(options.layers):
        layer = nn.Conv2d(channels, hidden, KERNEL, padding=KERNEL // 2, bias=False)
        found.append(nn.Sequential(layer, nn.BatchNorm2d(hidden), nn.ReLU()))
        if i < 2:
            found[-1].append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        channels = hidden
    if not height or not width:
        raise ValueError(f"--network cnn takes images of 4 x 4 pixels at least; got {shape[1:]}")
    return [*found, nn.Sequential(nn.Flatten(), nn.Linear(hidden * height * width, CLASSES))]


def make(options: ImagesOptions, shape: tuple[int, int, int]) -> ImageModel:
    """The network for images of a shape, with its cuts."""
    layers = layers_of(options, shape)
    cuts = set(range(1, options.layers + 1)) if "every" in options.cuts else set(options.cuts)
    if options.estimator.name == "none":
        cuts = set()
    parts: list[nn.Module] = [nn.Sequential()]
    for place, layer in enumerate(layers, start=1):
        parts[-1].extend(layer)
        if place in cuts:
            parts.append(nn.Sequential())
    estimators = [options.estimator.build(options.network, options.hidden) for _ in cuts]
    models = []
    if options.update.synthetic_inputs:
        pixels = math.prod(shape)
        models = [
            nn.Sequential(nn.Flatten(), nn.Linear(pixels, options.hidden), nn.ReLU())
            for _ in cuts
        ]
    return ImageModel(parts, estimators, models, shape, options)
