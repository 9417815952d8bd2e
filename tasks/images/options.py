"""The options of the images task: the pictures, the network and its cuts, training."""

import dataclasses
from typing import Any

from dnirnn.config.options import (
    Checked,
    RunOptions,
    TrainingOptions,
    changed,
    flag,
    number_or,
    option,
)
from dnirnn.decoupled import UPDATES

CLASSES = 10
KERNEL = 5
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
    parallel: str = option(
        "data",
        "what torchrun's processes share: data, the rows of a batch (not with batch norm, which all"
        " layers here have); decoupled, the layers: each process holds some of those between cuts,"
        " steps on what a predictor says, and does not wait for those above it",
        choices=("data", "decoupled"),
    )
    staleness: int = option(
        1,
        "batches that the targets of the predictor between two processes may be behind; with more of"
        " them missing the lower one waits",
        "BATCHES",
        at_least=0,
        where=("parallel", ("decoupled",)),
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
        if self.parallel == "decoupled" and self.update != "lockstep":
            raise ValueError(f"--parallel decoupled updates in its own way: no --update {self.update}")
        if self.update != "lockstep" or self.parallel == "decoupled":
            how = "--update lockstep"
            how += " in one process" if self.parallel == "decoupled" else ""
            for name in ("warm_up", "blend", "micro_batch", "clip", "lift", "estimator_clip",
                         "estimator_lift"):  # fmt: skip
                if getattr(self, name):
                    raise ValueError(f"{flag(name)} goes with {how} only")
            if self.estimator in ("none", "true"):
                way = "--parallel decoupled" if self.parallel == "decoupled" else f"--update {self.update}"
                raise ValueError(
                    f"{way} needs cuts: --estimator zero, dni or cdni; got {self.estimator}"
                )
        if self.estimator_batch_norm and self.estimator_hidden in ((), ("linear",)):
            raise ValueError("--estimator-batch-norm takes hidden layers: --estimator-hidden UNITS ...")
        if self.solved and (self.network == "cnn" or self.estimator_hidden not in ((), ("linear",))):
            raise ValueError("--solved goes with linear predictors of an fcn only")
        if self.synthetic_inputs and self.network == "cnn":
            raise ValueError("--synthetic-inputs goes with --network fcn only")
        if self.data_dir is not None and self.images == "builtin":
            raise ValueError("--data-dir goes with --images mnist, cifar10 only; got builtin")
