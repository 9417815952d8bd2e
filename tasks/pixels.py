"""pixels: which digit a picture shows, read pixel by pixel or row by row, asked at its end.

Source: Le, Jaitly and Hinton, A Simple Way to Initialize Recurrent Networks of Rectified Linear Units,
2015, arXiv 1504.00941, section 4.2: MNIST as 784 steps, in reading order or in one fixed random order.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.config.network import NetworkOptions, make_model
from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, Task, TaskOptions
from dnirnn.data import Batch, images
from dnirnn.data.images import Images
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.options import option, override
from dnirnn.tasks.digits import CountingOptions
from dnirnn.tasks.images.data import ImageStream
from dnirnn.tasks.images.data import notice as best_guess
from dnirnn.tasks.images.options import CLASSES
from dnirnn.tasks.measured import TEST, VALIDATION, make_task, measure

FIGURES = (
    Figure("test_accuracy", "test, % of images right", "{:.2f}", False),
    Figure("accuracy", "validation, % of images right", "{:.2f}", False),
    Figure("nats", "validation, nats per image", "{:.4f}", True),
)
DECAY = "none"  # of the learning rate over the budget
UNIT, EPOCHS = "images", "epochs"
DATA = {"split", "data_dir"}  # options of it that `eval` takes
FOUND = ("permutation", "shape", "images_sha256")  # what it adds to a run's configuration
VALIDATED = 1000  # of the validation images, the first so many: 784 steps of each are many
AT_ONCE = 250


@dataclasses.dataclass(frozen=True, init=False)
class PixelOrder(OptionGroup):
    """pixels"""

    digits: str = override(CountingOptions, "digits")
    data_dir: str | None = override(CountingOptions, "data_dir")
    rows: bool = option(False, "a row of the picture is a step, not a pixel")
    permuted: int | None = option(
        None, "the pixels in one random order, which this seed draws and the configuration holds",
        "SEED", at_least=0, shown="in reading order",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, init=False)
class PixelOptions(PixelOrder, NetworkOptions, TaskOptions):
    # An image is one symbol.
    evaluate_every: int = override(TaskOptions, "evaluate_every", default=20_000)
    log_every: int = override(TaskOptions, "log_every", default=2_000)


Options = PixelOptions


class PixelStream(ImageStream):
    """The images of an :class:`ImageStream`, each a sequence of pixels in ``order``, W a step.

    x: [T, B, W], from 0 to 1; y: [T, B], what it shows, of which the last step counts. label: the same,
    one-hot.
    """

    def __init__(self, known: Images, order: Tensor, width: int, batch_size: int, seed: int):
        super().__init__(*known.splits["train"], known.white, batch_size, seed)
        self.order_of_pixels, self.width, self.step = order, width, 0

    def next(self, steps: int | None) -> Batch:
        if self.step == 0:
            self.before = super().state_dict()  # from where the images at hand are drawn again
            shown = super().next(None)
            self.sequence = lay_out(shown.x[0], shown.y[0], self.order_of_pixels, self.width)
        start, total = self.step, len(self.sequence.x)
        end = total if steps is None else min(start + steps, total)
        self.step = end % total
        return self.sequence.piece(start, end)

    def state_dict(self) -> dict:
        return {**(self.before if self.step else super().state_dict()), "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.step = 0
        if state["step"]:
            self.next(state["step"])


def lay_out(pixels: Tensor, labels: Tensor, order: Tensor, width: int) -> Batch:
    """The sequences of images [B, P], as floats from 0 to 1."""
    x = pixels[:, order].unflatten(1, (-1, width)).transpose(0, 1)
    weight = torch.zeros(x.shape[:2])
    weight[-1] = 1
    label = F.one_hot(labels, CLASSES)
    return Batch(x, labels.expand(len(x), -1), weight, True, True, None, label)


def order_of(options: PixelOptions, pixels: int) -> Tensor:
    if options.permuted is None:
        return torch.arange(pixels)
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(options.permuted))


def width_of(options: PixelOptions, shape: tuple[int, int, int]) -> int:
    """Pixels a step."""
    return shape[2] if options.rows else 1


def held_out(known: Images, split: str, order: Tensor, width: int) -> list[Batch]:
    pixels, labels = known.splits[split]
    count = VALIDATED if split == "valid" else len(labels)
    return [
        lay_out(x.float() / known.white, y, order, width)
        for x, y in zip(pixels[:count].split(AT_ONCE), labels[:count].split(AT_ONCE))
    ]


def make(options: PixelOptions, shape: tuple[int, int, int]) -> SequenceModel:
    width = width_of(options, shape)
    return make_model(options, nn.Identity(), width, CLASSES, symbol_nats, label_size=CLASSES)


def sums(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    logits, y = outputs[-1], batch.y[-1]
    return {
        "nats": F.cross_entropy(logits, y, reduction="none"),
        "accuracy": 100 * (logits.argmax(-1) == y).double(),
    }


def build(options: PixelOptions) -> Task:
    """Everything that training needs, from the options.

    Raises ValueError or OSError, naming the option, for images that can't be read.
    """
    known = images.load(options.digits, options.data_dir)
    order, width = order_of(options, known.splits["train"][0].shape[1]), width_of(options, known.shape)
    stream = PixelStream(known, order, width, options.batch, options.seed)
    torch.manual_seed(options.seed)
    splits = {VALIDATION: "valid", TEST: "test"}
    found: dict[str, Any] = {
        "permutation": None if options.permuted is None else order.tolist(),
        "shape": list(known.shape),
        "images_sha256": known.fingerprint(),
    }
    return make_task(
        "pixels",
        resolve(options),
        make(options, known.shape),
        stream,
        lambda seed: held_out(known, splits[seed], order, width),
        sums,
        "nats",
        1,
        notice(options, known),
        len(order) // width,
        found=found,
    )


def notice(options: PixelOptions, known: Images) -> str:
    _, height, width = known.shape
    steps, what = (height, "rows") if options.rows else (height * width, "pixels")
    order = "" if options.permuted is None else f", permuted by seed {options.permuted}"
    return f"{steps} {what} of each{order}; {best_guess(known)}"


def resolve(options: PixelOptions) -> PixelOptions:
    """The same options with an absolute path, so that a run can be found again from elsewhere."""
    if options.data_dir is None:
        return options
    return dataclasses.replace(options, data_dir=str(Path(options.data_dir).resolve()))


def subject(options: PixelOptions) -> str:
    """The task's part of a run folder's name."""
    order = "" if options.permuted is None else f"-permuted{options.permuted}"
    return f"{options.digits}{'-rows' if options.rows else ''}{order}"


def restore(config: dict) -> tuple[SequenceModel, None]:
    """The model, with fresh weights, of a run's configuration; there is no vocabulary."""
    return make(from_config(PixelOptions, config), tuple(config["shape"])), None


def evaluate(config: dict, model: SequenceModel, split: str) -> list[str]:
    """Lines that report how many of a split's images are predicted right.

    Raises ValueError where the images are not those that the run was trained on.
    """
    options = from_config(PixelOptions, config)
    known = images.load(options.digits, options.data_dir)
    if known.fingerprint() != config["images_sha256"]:
        raise ValueError(f"{known.name}: these are not the images that the run was trained on")
    pixels = known.splits[split][0].shape[1]
    order = torch.tensor(config["permutation"] or range(pixels))
    found = measure(model, held_out(known, split, order, width_of(options, known.shape)), sums)
    text = f"{split}, {found['accuracy']:.2f} % of images right; nats per image: {found['nats']:.4f}"
    return [text, notice(options, known)]
