"""The pictures of the images task: an endless stream of batches, and a split in order."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from dnirnn.data import Batch, Stream, images
from dnirnn.data.images import Images
from dnirnn.tasks.images.options import CLASSES, ImagesOptions

TESTED_AT_ONCE = 1000


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


def load(options: ImagesOptions) -> Images:
    if options.images == "cifar10":
        return images.cifar10(options.data_dir)
    return images.load(options.images, options.data_dir)


def batches(known: Images, split: str, device: torch.device):
    """(x [B, P], y [B]) of a split's images, in order."""
    pixels, labels = known.splits[split]
    for x, y in zip(pixels.split(TESTED_AT_ONCE), labels.split(TESTED_AT_ONCE)):
        yield x.to(device).float() / known.white, y.to(device)


def notice(known: Images) -> str:
    labels = known.splits["test"][1]
    share = float(labels.bincount(minlength=CLASSES).max()) / len(labels)
    return f"{known.describe()}; the best guess is wrong in {100 * (1 - share):.1f} %"


def resolve(options: ImagesOptions) -> ImagesOptions:
    """The same options with an absolute path, so that a run can be found again from elsewhere."""
    if options.data_dir is None:
        return options
    return dataclasses.replace(options, data_dir=str(Path(options.data_dir).resolve()))
