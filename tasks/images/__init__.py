"""images: a feed-forward network that classifies pictures, cut between its layers.

Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section
3.1 (feed-forward networks) and 3.3 (random order, synthetic inputs).
"""

import torch

from dnirnn.config.saved import from_config, identity
from dnirnn.config.task import Task
from dnirnn.tasks.images.data import ImageStream, load, notice, resolve
from dnirnn.tasks.images.figures import FIGURES, fidelity, measure, measurement
from dnirnn.tasks.images.network import ImageModel, make, one_hot
from dnirnn.tasks.images.options import ImagesOptions
from dnirnn.tasks.images.updates import attach

__all__ = [
    "COMPARED", "DATA", "DECAY", "EPOCHS", "FIGURES", "FOUND", "UNIT", "ImageModel", "ImageStream",
    "ImagesOptions", "Options", "attach", "build", "evaluate", "fidelity", "folder_name", "make", "measure",
    "measurement", "network_line", "one_hot", "restore", "subject",
]  # fmt: skip

DECAY = "linear"  # of the learning rate over the budget
UNIT, EPOCHS = "images", "epochs"
DATA = {"split", "data_dir"}  # options of it that `eval` takes
FOUND = ("shape", "images_sha256")  # what it adds to a run's configuration
COMPARED = {"estimator": ("none", "zero", "dni", "cdni")}
Options = ImagesOptions


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
            **identity(resolve(options)),
            "shape": list(known.shape),
            "images_sha256": known.fingerprint(),
        },
        notice(known),
    )


def subject(options: ImagesOptions) -> str:
    """The task's part of a run folder's name."""
    return options.images


def folder_name(options: ImagesOptions) -> str:
    network = f"{options.network}{options.layers}x{options.hidden}"
    how = [] if options.update.name == "lockstep" else [options.update.name]
    return "-".join(
        ("images", options.images, network, options.estimator.name, *how, f"seed{options.seed}")
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
    """Lines that report how many of a split's images are predicted wrong.

    Raises ValueError where the images are not those that the run was trained on.
    """
    options = from_config(ImagesOptions, config)
    known = load(options)
    if known.fingerprint() != config["images_sha256"]:
        raise ValueError(f"{known.name}: these are not the images that the run was trained on")
    found = measure(model, known, split)
    return [f"{split} error: {found['error']:.2f} %; bits per image: {found['bits']:.4f}", notice(known)]
