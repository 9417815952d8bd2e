"""The options of the images task: the pictures, the network and its cuts, training."""

import dataclasses
from typing import ClassVar

from dnirnn import (
    ConvSyntheticGradient,
    GradientEstimator,
    LeastSquares,
    SyntheticGradient,
    ZeroGradient,
)
from dnirnn.config.parallel import Sharing
from dnirnn.config.task import TaskOptions
from dnirnn.groups import OptionGroup
from dnirnn.options import Config, Registry, choice, flag, option, override

CLASSES = 10
KERNEL = 5


@dataclasses.dataclass(frozen=True)
class Cut(Config):
    """What is sent back at a cut; one that --estimator names."""

    registry: ClassVar[Registry] = Registry("estimator")
    label: ClassVar[str]
    fitted = descends = False

    def build(self, network: str, size: int) -> GradientEstimator | None:
        """Of layers of ``size`` units or channels; None: the network is not cut."""
        return None


class NoCut(Cut, name="none"):
    """nothing is cut: backpropagation"""

    label = "BPTT"


class ZeroCut(Cut, name="zero"):
    """nothing is sent back"""

    label = "nothing sent back"

    def build(self, network: str, size: int) -> GradientEstimator:
        return ZeroGradient()


@dataclasses.dataclass(frozen=True)
class DNICut(Cut, name="dni"):
    """a predictor's output"""

    label = "DNI"
    fitted = descends = True
    context_size: ClassVar[int] = 0

    estimator_hidden: tuple = option(
        (), "widths, or channels, of the hidden layers of the predictor, or the word linear for none",
        "UNITS", at_least=1, many=int, words=("linear",), shown="linear",
    )  # fmt: skip
    estimator_batch_norm: bool = option(
        False, "the predictors' hidden layers are batch-normalised, as the paper's are"
    )
    solved: bool = option(
        False,
        "the predictors are linear and solved for by least squares; --estimator-lr has no part in"
        " it; of an fcn",
    )
    scale: float = option(
        1.0, "multiplies a synthetic gradient where it is sent back", at_least=0
    )
    discount: float = option(
        1.0, "multiplies it where it enters the target of the predictor below", at_least=0
    )
    normalise: bool = option(
        False,
        "predict in units of the targets' running size, so that --estimator-lr means the same"
        " whatever it is",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator_batch_norm and not self.widths:
            raise ValueError("--estimator-batch-norm takes hidden layers: --estimator-hidden UNITS ...")
        if self.solved and self.widths:
            raise ValueError("--solved goes with linear predictors of an fcn only")

    @property
    def widths(self) -> tuple[int, ...]:
        return () if self.estimator_hidden == ("linear",) else self.estimator_hidden

    def build(self, network: str, size: int) -> GradientEstimator:
        knobs = dict(scale=self.scale, discount=self.discount, context_size=self.context_size)
        if self.solved:
            return LeastSquares(size, **knobs)
        kind = ConvSyntheticGradient if network == "cnn" else SyntheticGradient
        knobs.update(normalise=self.normalise, batch_norm=self.estimator_batch_norm)
        return kind(size, self.widths, **knobs)


class CDNICut(DNICut, name="cdni"):
    """a prediction conditioned on the label"""

    label = "cDNI"
    context_size = CLASSES


class TrueCut(DNICut, name="true"):
    """the true gradient, to which a predictor is fitted that is not used"""

    label = "true gradient"


@dataclasses.dataclass(frozen=True)
class Order(Config):
    """When what is between two cuts is updated; one that --update names."""

    registry: ClassVar[Registry] = Registry("update")
    update_probability: ClassVar[float] = 1.0
    synthetic_inputs: ClassVar[bool] = False


class Lockstep(Order, name="lockstep"):
    """all after the loss"""


@dataclasses.dataclass(frozen=True)
class Unlocked(Order, name="unlocked"):
    """each right after its own forward pass"""

    synthetic_inputs: bool = option(
        False,
        "a model beside each cut predicts from the image what the part below it will output, and is"
        " what the part above it reads in training",
    )


@dataclasses.dataclass(frozen=True)
class Random(Unlocked, name="random"):
    """in an order drawn anew at each batch, on what the part below last sent"""

    update_probability: float = option(
        1.0, "that a part is updated at a batch", "PROBABILITY", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.update_probability > 1:
            raise ValueError(
                f"--update-probability must be at most 1; got {self.update_probability}"
            )


@dataclasses.dataclass(frozen=True, init=False)
class ImagesTaskOptions(OptionGroup):
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


@dataclasses.dataclass(frozen=True, init=False)
class FeedForwardOptions(OptionGroup):
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
        ("every",), "the layers above which it is cut, from 1, or the word every", "LAYERS",
        at_least=1, many=int, words=("every",),
    )  # fmt: skip
    estimator: Cut = choice(Cut.registry, "dni", "what is sent back at a cut")
    update: Order = choice(
        Order.registry, "lockstep", "when what is between two cuts is updated"
    )
    parallel: Sharing = choice(Sharing.registry, "data", "what torchrun's processes share")


@dataclasses.dataclass(frozen=True, init=False)
class ImagesOptions(ImagesTaskOptions, FeedForwardOptions, TaskOptions):
    batch: int = override(TaskOptions, "batch", default=256)
    clip: float | None = override(TaskOptions, "clip", default=0.0)
    lr: float = override(TaskOptions, "lr", default=3e-4)
    estimator_lr: float = override(TaskOptions, "estimator_lr", default=1e-3)
    evaluate_every: int | None = override(TaskOptions, "evaluate_every", default=275_000)
    warm_up: int = override(
        TaskOptions, "warm_up",
        help="updates in which nothing is cut and the predictors are fitted to the true gradients",
    )  # fmt: skip
    ramp: int = override(
        TaskOptions, "ramp",
        help="updates after them over which what is sent back rises from nothing to the whole",
    )  # fmt: skip
    fidelity_every: int | None = override(
        TaskOptions, "fidelity_every", unit="IMAGES",
        help="training images between two comparisons of each predictor's output with the true"
        " gradient",
    )  # fmt: skip

    # An image is a sequence of one step.
    truncation = 1

    @property
    def core(self) -> str:
        return self.network

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden is None:
            object.__setattr__(self, "hidden", 64 if self.network == "cnn" else 256)
        if "every" not in self.cuts and max(self.cuts) > self.layers:
            raise ValueError(f"--cuts must be of layers 1 to {self.layers}; got {max(self.cuts)}")
        decoupled, update = self.parallel.name == "decoupled", self.update.name
        if decoupled and update != "lockstep":
            raise ValueError(f"--parallel decoupled updates in its own way: no --update {update}")
        if decoupled or update != "lockstep":
            how = "--update lockstep in one process" if decoupled else "--update lockstep"
            for name in ("warm_up", "ramp", "micro_batch", "clip", "min_norm", "estimator_clip",
                         "estimator_min_norm"):  # fmt: skip
                if getattr(self, name):
                    raise ValueError(f"{flag(name)} goes with {how} only")
            if self.estimator.name in ("none", "true"):
                way = "--parallel decoupled" if decoupled else f"--update {update}"
                raise ValueError(
                    f"{way} needs cuts: --estimator zero, dni or cdni; got {self.estimator}"
                )
        if self.network == "cnn":
            if getattr(self.estimator, "solved", False):
                raise ValueError("--solved goes with linear predictors of an fcn only")
            if self.update.synthetic_inputs:
                raise ValueError("--synthetic-inputs goes with --network fcn only")
        if self.data_dir is not None and self.images == "builtin":
            raise ValueError("--data-dir goes with --images mnist, cifar10 only; got builtin")
