"""images: a feed-forward network that says what a picture shows, cut between its layers.

Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section
3.1 (feed-forward networks) and 3.3 (random order, synthetic inputs).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import (
    ConvSyntheticGradient,
    Decoupled,
    GradientEstimator,
    Interface,
    LeastSquares,
    SyntheticGradient,
    ZeroGradient,
)
from dnirnn.config.options import (
    Checked,
    RunOptions,
    TrainingOptions,
    changed,
    flag,
    from_config,
    number_or,
    option,
    remembered,
)
from dnirnn.config.task import Figure, Task
from dnirnn.data import Batch, Stream, images
from dnirnn.data.images import Images
from dnirnn.decoupled import UPDATES, Said
from dnirnn.training.trainer import Trainer
from dnirnn.training.updater import TOLD

FIGURES = (
    Figure("test_error", "test error, %", "{:.2f}", True),
    Figure("error", "validation error, %", "{:.2f}", True),
    Figure("bits", "validation, bits per image", "{:.4f}", True),
)
DECAY = "linear"  # of the learning rate over the budget
UNIT, EPOCHS = "images", "epochs"
DATA = {"split", "data_dir"}  # what `eval` may be told of it
CLASSES = 10
KERNEL = 5
TESTED_AT_ONCE = 1000
FIDELITY_ROWS = 1000
LEARNED = ("dni", "cdni", "true")
ESTIMATORS = ("none", "zero", *LEARNED)


@dataclasses.dataclass(frozen=True)
class ImagesTaskOptions(Checked):
    """images"""

    images: str = option(
        "builtin",
        "the pictures: mnist, cifar10, or builtin: scikit-learn's 8 x 8 digits, nothing to download",
        choices=("builtin", "mnist", "cifar10"),
    )
    data_dir: str | None = option(
        None,
        "with mnist, cifar10: the folder of its idx files, or of train.parquet and test.parquet",
        "FOLDER",
        shown="downloaded from the hub",
    )


@dataclasses.dataclass(frozen=True)
class FeedForwardOptions(Checked):
    """network"""

    network: str = option(
        "fcn",
        "its layers, each with batch norm and ReLU: fcn, all connected; cnn, convolutions of"
        f" {KERNEL} x {KERNEL}, of which the first two halve height and width",
        choices=("fcn", "cnn"),
    )
    layers: int = option(3, "layers below the readout", "LAYERS", at_least=1)
    hidden: int | None = option(
        None, "units, or channels, of a layer", "UNITS", at_least=1, shown="256; 64 in a cnn"
    )
    cuts: tuple = option(
        ("every",),
        "the layers above which it is cut, from 1, or the word every",
        "LAYERS",
        at_least=1,
        parse=number_or("every"),
        many=True,
        shown="every",
    )
    estimator: str = option(
        "dni",
        "what is sent back at a cut: none, it is not cut: backpropagation; zero, nothing; dni, what"
        " a predictor says; cdni, of a predictor that is told the label; true, the true gradient, to"
        " which a predictor is fitted that is not used",
        choices=ESTIMATORS,
    )
    estimator_hidden: tuple = option(
        (),
        "widths, or channels, of the hidden layers of the predictor, or the word linear for none",
        "UNITS",
        at_least=1,
        parse=number_or("linear"),
        many=True,
        shown="linear",
        where=("estimator", LEARNED),
    )
    estimator_batch_norm: bool = option(
        False,
        "the predictors' hidden layers are batch-normalised, as the paper's are",
        where=("estimator", LEARNED),
    )
    solved: bool = option(
        False,
        "the predictors are linear and solved for by least squares; --estimator-lr has no part in"
        " it; of an fcn",
        where=("estimator", LEARNED),
    )
    scale: float = option(
        1.0, "multiplies a synthetic gradient where it is sent back", at_least=0,
        where=("estimator", LEARNED),
    )
    discount: float = option(
        1.0, "multiplies it where it enters the target of the predictor below", at_least=0,
        where=("estimator", LEARNED),
    )
    normalise: bool = option(
        False,
        "predict in units of the targets' running size, so that --estimator-lr means the same"
        " whatever it is",
        where=("estimator", LEARNED),
    )
    warm_up: int = option(
        0, "updates in which nothing is cut and the predictors are fitted to the true gradients",
        "UPDATES", at_least=0, where=("estimator", LEARNED),
    )
    blend: int = option(
        0, "updates after them over which what is sent back rises from nothing to the whole",
        "UPDATES", at_least=0, where=("estimator", LEARNED),
    )
    update: str = option(
        "lockstep",
        "when what is between two cuts is updated: lockstep, all after the loss; unlocked, each"
        " right after its own forward pass; random, in an order drawn anew at each batch, on what"
        " the part below last said",
        choices=UPDATES,
    )
    update_probability: float = option(
        1.0, "that a part is updated at a batch", "PROBABILITY", above=0,
        where=("update", ("random",)),
    )
    synthetic_inputs: bool = option(
        False,
        "a model beside each cut predicts from the image what the part below it will say, and is"
        " what the part above it reads in training",
        where=("update", ("unlocked", "random")),
    )
    fidelity_every: int | None = option(
        None,
        "training images between two comparisons of what each predictor says with the true gradient",
        "IMAGES",
        at_least=1,
        shown="never",
        where=("estimator", LEARNED),
    )


def of_estimators(name: str) -> Any:
    """The training option of that name, for the estimators that there are here."""
    field = TrainingOptions.__dataclass_fields__[name]
    metadata = {**field.metadata, "where": ("estimator", LEARNED)}
    return dataclasses.field(default=field.default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class ImagesOptions(ImagesTaskOptions, FeedForwardOptions, TrainingOptions, RunOptions):
    batch: int = changed(TrainingOptions, "batch", 256)
    clip: float = changed(TrainingOptions, "clip", 0.0)
    lr: float = changed(TrainingOptions, "lr", 3e-4)
    estimator_lr: float = dataclasses.field(
        default=1e-3,
        metadata={**TrainingOptions.__dataclass_fields__["estimator_lr"].metadata,
                  "where": ("estimator", LEARNED)},
    )  # fmt: skip
    estimator_optimizer: str = of_estimators("estimator_optimizer")
    estimator_optimizer_options: tuple = of_estimators("estimator_optimizer_options")
    estimator_clip: float = of_estimators("estimator_clip")
    estimator_lift: float = of_estimators("estimator_lift")
    evaluate_every: int = changed(TrainingOptions, "evaluate_every", 275_000)

    # An image is a sequence of one step.
    truncation = 1
    parameters = None
    fidelity_lookahead = None

    @property
    def core(self) -> str:
        return self.network

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is None:
            object.__setattr__(self, "hidden", 64 if self.network == "cnn" else 256)
        if self.update_steps is not None:
            raise ValueError(f"--update-steps goes with tasks of time; got {self.update_steps}")
        if self.update_probability > 1:
            raise ValueError(
                f"--update-probability must be at most 1; got {self.update_probability}"
            )
        if "every" not in self.cuts and max(self.cuts) > self.layers:
            raise ValueError(f"--cuts must be of layers 1 to {self.layers}; got {max(self.cuts)}")
        if self.update != "lockstep":
            for name in ("warm_up", "blend", "micro_batch", "clip", "lift", "estimator_clip",
                         "estimator_lift"):  # fmt: skip
                if getattr(self, name):
                    raise ValueError(f"{flag(name)} goes with --update lockstep only")
            if self.estimator in ("none", "true"):
                raise ValueError(
                    f"--update {self.update} needs cuts: --estimator zero, dni or cdni; got"
                    f" {self.estimator}"
                )
        if self.estimator_batch_norm and self.estimator_hidden in ((), ("linear",)):
            raise ValueError("--estimator-batch-norm takes hidden layers: --estimator-hidden UNITS ...")
        if self.solved and (self.network == "cnn" or self.estimator_hidden not in ((), ("linear",))):
            raise ValueError("--solved goes with linear predictors of an fcn only")
        if self.synthetic_inputs and self.network == "cnn":
            raise ValueError("--synthetic-inputs goes with --network fcn only")
        if self.data_dir is not None and self.images == "builtin":
            raise ValueError("--data-dir goes with --images mnist, cifar10 only; got builtin")


Options = ImagesOptions


class ImageStream(Stream):
    """Images in an order drawn anew each epoch, whole batches only: one endless sequence.

    x: [1, B, P], pixels from 0 to 1; y: [1, B].
    """

    def __init__(self, pixels: Tensor, labels: Tensor, white: int, batch_size: int, seed: int):
        if len(labels) < batch_size:
            raise ValueError(f"--batch must be at most {len(labels)}, all images; got {batch_size}")
        self.pixels, self.labels, self.white = pixels, labels, white
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.begun = self.generator.get_state()
        self.order = torch.randperm(len(labels), generator=self.generator)
        self.position, self.seen = 0, 0

    @property
    def epochs(self) -> float:
        return self.seen / len(self.labels)

    def next(self, steps: int | None) -> Batch:
        if self.position + self.batch_size > len(self.labels):
            self.begun = self.generator.get_state()
            self.order = torch.randperm(len(self.labels), generator=self.generator)
            self.position = 0
        rows = self.order[self.position : self.position + self.batch_size]
        first = self.seen == 0
        self.position += self.batch_size
        self.seen += self.batch_size
        x = self.pixels[rows].float() / self.white
        return Batch(x[None], self.labels[rows][None], first=first)

    def state_dict(self) -> dict:
        return {"begun": self.begun.clone(), "position": self.position, "seen": self.seen}

    def load_state_dict(self, state: dict) -> None:
        self.begun = state["begun"]
        self.generator.set_state(self.begun)
        self.order = torch.randperm(len(self.labels), generator=self.generator)
        self.position, self.seen = state["position"], state["seen"]


class Cuts(nn.ModuleList):
    """The estimators of all cuts: what a trainer takes for one.

    scale: what share of each one's own scale is sent back.
    """

    needs_context = False
    waits = False
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

    def __init__(self, cuts: Cuts):
        super().__init__()
        self.estimator = cuts


class ImageModel(nn.Module):
    """Parts between cuts, and what is said of an image: logits [B, 10].

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
        self.through = options.estimator == "true"
        decoupled = Decoupled(
            parts,
            list(estimators),
            F.cross_entropy,
            [None] * len(parts),
            [None] * len(estimators),
            update=options.update,
            probability=options.update_probability,
            synthetic_inputs=synthetic_inputs or None,
            synthetic_input_optimizers=[None] * len(synthetic_inputs),
        )
        # No submodule of this one: its parts are, once.
        object.__setattr__(self, "decoupled", decoupled)
        with torch.no_grad():
            self.eval()
            x, self.said_shapes = torch.zeros(1, *shape), []
            for part in self.parts[:-1]:
                x = part(x)
                self.said_shapes.append(x.shape[1:])
            self.train()

    def initial_state(self, batch_size: int) -> Tensor:
        """[B, S]: what the parts last said, where they go by it, as :meth:`kept` has it."""
        return torch.zeros(batch_size, self.state_size, device=next(self.parameters()).device)

    @property
    def state_size(self) -> int:
        random = self.decoupled.update == "random" and not len(self.synthetic_inputs)
        return sum(2 + shape.numel() for shape in self.said_shapes) if random else 0

    def kept(self) -> Tensor:
        """What was last said, with its rows' labels and whether anything was, as one tensor."""
        found = []
        for said, shape in zip(self.decoupled.said, self.said_shapes):
            if said is None:
                found.append(torch.zeros(self.rows, 2 + shape.numel(), device=self.place))
            else:
                more = torch.stack([said.y.to(said.h.dtype), torch.ones_like(said.h.flatten(1)[:, 0])], 1)
                found.append(torch.cat([said.h.flatten(1), more], 1))
        return torch.cat(found, 1)

    def recall(self, state: Tensor) -> None:
        """Goes on from what was :meth:`kept`."""
        self.rows, self.place = len(state), state.device
        parts = state.split([2 + shape.numel() for shape in self.said_shapes], 1)
        for i, (part, shape) in enumerate(zip(parts, self.said_shapes)):
            y = part[:, -2].long()
            known = Said(part[:, :-2].reshape(-1, *shape), y, one_hot(y))
            self.decoupled.said[i] = known if bool(part[0, -1]) else None

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


class DecoupledUpdater:
    """Updates of parts that do not wait for one another; as dnirnn.training.updater.Updater to a trainer.

    Every part steps as soon as it can, so what is not finite is found after the update. The loss
    that is told is that of the last time that the last part was updated.
    """

    full = True

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


def attach(trainer: Trainer, options: ImagesOptions) -> None:
    """Has the trainer's updates made part by part, where they are not to be in lockstep.

    An optimizer steps what has a gradient: one serves all parts, each in its turn.
    """
    if options.update == "lockstep":
        return
    decoupled = trainer.model.decoupled
    optimizers = [*trainer.optimizers, None][:2]
    decoupled.optimizers = [optimizers[0]] * len(decoupled.parts)
    decoupled.estimator_optimizers = [optimizers[1]] * len(decoupled.estimators)
    decoupled.synthetic_input_optimizers = optimizers[1:] * len(trainer.model.synthetic_inputs)
    trainer.updater = DecoupledUpdater(trainer.model)


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


def make_estimator(options: ImagesOptions) -> GradientEstimator:
    if options.estimator == "zero":
        return ZeroGradient()
    knobs = dict(scale=options.scale, discount=options.discount)
    knobs["context_size"] = CLASSES if options.estimator == "cdni" else 0
    if options.solved:
        return LeastSquares(options.hidden, **knobs)
    widths = tuple(width for width in options.estimator_hidden if width != "linear")
    kind = ConvSyntheticGradient if options.network == "cnn" else SyntheticGradient
    knobs.update(normalise=options.normalise, batch_norm=options.estimator_batch_norm)
    return kind(options.hidden, widths, **knobs)


def make(options: ImagesOptions, shape: tuple[int, int, int]) -> ImageModel:
    """The network for images of a shape, with its cuts."""
    layers = layers_of(options, shape)
    cuts = set(range(1, options.layers + 1)) if "every" in options.cuts else set(options.cuts)
    if options.estimator == "none":
        cuts = set()
    parts: list[nn.Module] = [nn.Sequential()]
    for place, layer in enumerate(layers, start=1):
        parts[-1].extend(layer)
        if place in cuts:
            parts.append(nn.Sequential())
    estimators = [make_estimator(options) for _ in cuts]
    models = []
    if options.synthetic_inputs:
        pixels = math.prod(shape)
        models = [
            nn.Sequential(nn.Flatten(), nn.Linear(pixels, options.hidden), nn.ReLU())
            for _ in cuts
        ]
    return ImageModel(parts, estimators, models, shape, options)


def load(options: ImagesOptions) -> Images:
    if options.images == "cifar10":
        return images.cifar10(options.data_dir)
    return images.load(options.images, options.data_dir)


def batches(known: Images, split: str, device: torch.device):
    """(x [B, P], y [B]) of a split's images, in order."""
    pixels, labels = known.splits[split]
    for x, y in zip(pixels.split(TESTED_AT_ONCE), labels.split(TESTED_AT_ONCE)):
        yield x.to(device).float() / known.white, y.to(device)


def measure(model: ImageModel, known: Images, split: str) -> dict[str, float]:
    """{"bits": mean bits of a label, "error": percent that are said wrong} of a split."""
    training, nats, wrong = model.training, 0.0, 0
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches(known, split, next(model.parameters()).device):
                logits = model.logits(x)
                nats += float(F.cross_entropy(logits, y, reduction="sum"))
                wrong += int((logits.argmax(1) != y).sum())
    finally:
        model.train(training)
    count = len(known.splits[split][1])
    return {"bits": nats / count / math.log(2), "error": 100 * wrong / count}


def fidelity(model: ImageModel, known: Images) -> dict[str, float]:
    """How near each predictor is to the true gradient, on validation images: a figure a cut.

    cosine_1, ..: with g what a predictor says of h, unscaled, and G the gradient that
    backpropagation has there, sum g G / sqrt(sum g^2 sum G^2) over all rows. norm_ratio_1, ..:
    sqrt(sum g^2 / sum G^2). No .grad is touched.
    """
    x, y = next(batches(known, "valid", next(model.parameters()).device))
    found = {}
    with torch.enable_grad():
        x, y = model.pictures(x[:FIDELITY_ROWS]), y[:FIDELITY_ROWS]
        output, cuts = model.decoupled.interfaces(x, one_hot(y), through=True)
        loss = F.cross_entropy(output, y, reduction="sum")
        true = torch.autograd.grad(loss, [cut.probe for cut in cuts])
    with torch.no_grad():
        for place, (cut, wanted) in enumerate(zip(cuts, true), start=1):
            context = () if cut.context is None else (cut.context[0],)
            said = cut.estimator(cut.entered[0], *context).double()
            wanted = wanted[0].double()
            lengths = said.norm() * wanted.norm()
            found[f"cosine_{place}"] = float((said * wanted).sum() / lengths) if lengths else 0.0
            found[f"norm_ratio_{place}"] = float(said.norm() / wanted.norm())
    return found


def measurement(task: Task, options: ImagesOptions):
    """What a trainer measures every so often; None where the options ask for nothing."""
    if options.fidelity_every is None:
        return None
    known = load(options)
    return lambda model: fidelity(model, known)


def build(options: ImagesOptions) -> Task:
    """Everything that training needs, from the options.

    Raises ValueError or OSError, naming the option, for images that can't be read.
    """
    known = load(options)
    stream = ImageStream(*known.splits["train"], known.white, options.batch, options.seed)
    torch.manual_seed(options.seed)
    model = make(options, known.shape)
    return Task(
        model,
        stream,
        lambda model: measure(model, known, "valid"),
        lambda model: {f"test_{k}": v for k, v in measure(model, known, "test").items()},
        options.batch,
        {
            "task": "images",
            **remembered(resolve(options)),
            "shape": list(known.shape),
            "images_sha256": known.fingerprint(),
        },
        notice(known),
    )


def notice(known: Images) -> str:
    labels = known.splits["test"][1]
    share = float(labels.bincount(minlength=CLASSES).max()) / len(labels)
    return f"{known.describe()}; the best guess is wrong in {100 * (1 - share):.1f} %"


def resolve(options: ImagesOptions) -> ImagesOptions:
    """The same options with an absolute path, so that a run can be found again from elsewhere."""
    if options.data_dir is None:
        return options
    return dataclasses.replace(options, data_dir=str(Path(options.data_dir).resolve()))


def subject(options: ImagesOptions) -> str:
    """What a run folder's name says of the task."""
    return options.images


def folder_name(options: ImagesOptions) -> str:
    network = f"{options.network}{options.layers}x{options.hidden}"
    how = () if options.update == "lockstep" else (options.update,)
    return "-".join(
        ("images", options.images, network, options.estimator, *how, f"seed{options.seed}")
    )


def network_line(task: Task, options: ImagesOptions) -> str:
    model = task.model
    core = sum(parameter.numel() for parameter in model.core_parameters())
    line = f"network: {options.network} of {options.layers} layers of {options.hidden},"
    line += f" {core:,} parameters in {len(model.parts)} parts"
    estimator = sum(parameter.numel() for parameter in model.estimator_parameters())
    return f"{line}, and {estimator:,} in what is beside them" if estimator else line


def restore(config: dict) -> tuple[ImageModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(ImagesOptions, config), tuple(config["shape"])), None


def evaluate(config: dict, model: ImageModel, split: str) -> list[str]:
    """Lines that say how many of a split's images are said wrong.

    Raises ValueError where the images are not those that the run was trained on.
    """
    options = from_config(ImagesOptions, config)
    known = load(options)
    if known.fingerprint() != config["images_sha256"]:
        raise ValueError(f"{known.name}: these are not the images that the run was trained on")
    found = measure(model, known, split)
    return [f"{split} error: {found['error']:.2f} %; bits per image: {found['bits']:.4f}", notice(known)]
