"""Labelled pictures: MNIST, CIFAR-10, or the small digits that scikit-learn carries."""

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HUB = "ylecun/mnist"
CIFAR_HUB = "uoft-cs/cifar10"
NAMES = {"train": "train", "test": "t10k"}  # of MNIST's files
HELD_OUT = 5_000  # the last of MNIST's training images: validation


class Images(NamedTuple):
    """Labelled images in three splits that share none.

    splits: of train, valid and test, (pixels [n, P] in uint8, labels [n] in int64).
    white: the largest value of a pixel.
    shape: channels, height, width of an image.
    """

    name: str
    splits: dict[str, tuple[Tensor, Tensor]]
    white: int
    shape: tuple[int, int, int]

    def describe(self) -> str:
        counts = " / ".join(f"{len(labels):,}" for _, labels in self.splits.values())
        return f"{self.name} ({counts} images in train / valid / test)"

    def fingerprint(self) -> str:
        """SHA-256 of all splits."""
        digest = hashlib.sha256()
        for parts in self.splits.values():
            for part in parts:
                digest.update(hashlib.sha256(part.numpy().tobytes()).digest())
        return digest.hexdigest()


def load(digits: str, data_dir: str | None = None) -> Images:
    """The images that the options of the same names ask for.

    digits: ``mnist``, or ``builtin``: scikit-learn's 1,797 of 8 x 8 pixels.
    data_dir: where MNIST's four idx files are, packed with gzip or not; None: the hub.

    Raises ValueError or OSError, naming the option, for a file that is missing or damaged.
    """
    if digits == "mnist":
        return mnist(data_dir) if data_dir else mnist_from_hub()
    if data_dir is not None:
        raise ValueError(f"--data-dir goes with --digits mnist only; got --digits {digits}")
    return builtin()


def builtin() -> Images:
    """scikit-learn's digits; of every six, the fifth is for validation and the sixth for test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "--digits builtin needs scikit-learn (pip install scikit-learn); or give --digits mnist"
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = torch.from_numpy(pixels).to(torch.uint8), torch.from_numpy(labels).long()
    place = torch.arange(len(labels)) % 6
    chosen = {"train": place < 4, "valid": place == 4, "test": place == 5}
    splits = {split: (pixels[rows], labels[rows]) for split, rows in chosen.items()}
    return Images("scikit-learn's 8 x 8 digits", splits, 16, (1, 8, 8))


def mnist(folder: str | Path) -> Images:
    """MNIST from its four idx files in ``folder``, each as it is or packed with gzip (.gz).

    Raises FileNotFoundError where one is missing, ValueError where one is no idx file or damaged.
    """
    read = {}
    for split, name in NAMES.items():
        pixels = read_idx(Path(folder) / f"{name}-images-idx3-ubyte", 3)
        labels = read_idx(Path(folder) / f"{name}-labels-idx1-ubyte", 1)
        if len(pixels) != len(labels):
            raise ValueError(
                f"--data-dir {folder} has {len(pixels):,} {name} images,"
                f" but {len(labels):,} labels of them"
            )
        read[split] = pixels, labels
    return divided(read, "MNIST")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file, in its shape; ``path`` or ``path``.gz.

    The format: two zero bytes, 8 for unsigned bytes, the number of dimensions; each dimension as a
    big-endian uint32; the data.
    """
    packed = path.with_name(path.name + ".gz")
    if path.is_file():
        data = path.read_bytes()
    elif packed.is_file():
        try:
            data = gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"--data-dir: {packed} is damaged ({error})") from None
    else:
        raise FileNotFoundError(
            f"--data-dir must be a folder with MNIST's four idx files; there is no {path} or"
            f" {packed.name}"
        )
    magic, header = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if data[:4] != magic or len(data) < header:
        raise ValueError(
            f"--data-dir: {path.name} must start with the bytes {magic.hex()}, an idx file of"
            f" {dimensions} dimensions; got {data[:4].hex()}"
        )
    shape = tuple(np.frombuffer(data, ">u4", dimensions, 4).tolist())
    size = int(np.prod(shape))
    if len(data) != header + size:
        raise ValueError(
            f"--data-dir: {path.name} must hold {size:,} bytes after its header, which says"
            f" {shape}; got {len(data) - header:,}"
        )
    return np.frombuffer(data, np.uint8, size, header).reshape(shape)


def mnist_from_hub() -> Images:
    """The same as :func:`mnist`, downloaded (or cached) by the package datasets.

    Raises OSError, saying what to pass instead, where the hub can't be reached.
    """
    loaded = from_hub(HUB, "MNIST", "MNIST's four idx files")
    return divided({split: unpacked(loaded[split], "image") for split in NAMES}, "MNIST")


def cifar10(folder: str | Path | None) -> Images:
    """CIFAR-10 from train.parquet and test.parquet in ``folder``, laid out as the hub's; None: the hub.

    Raises FileNotFoundError where one is missing, ValueError where one can't be read, OSError where
    the hub can't be reached.
    """
    if folder is None:
        loaded = from_hub(CIFAR_HUB, "CIFAR-10", "train.parquet and test.parquet")
        read = {split: unpacked(loaded[split], "img") for split in NAMES}
    else:
        import datasets

        files = {split: Path(folder) / f"{split}.parquet" for split in NAMES}
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(
                    "--data-dir must be a folder with CIFAR-10's train.parquet and test.parquet;"
                    f" there is no {path}"
                )
        try:
            read = {
                split: unpacked(
                    datasets.Dataset.from_parquet(str(path), keep_in_memory=True), "img"
                )
                for split, path in files.items()
            }
        except Exception as error:
            # What comes here depends on the versions of datasets and of pyarrow.
            raise ValueError(f"--data-dir {folder} can't be read: {error}") from error
    return divided(read, "CIFAR-10")


def from_hub(name: str, images: str, files: str):
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name)
    except Exception as error:
        # What comes here depends on the versions of datasets and of what it downloads with.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"{images} could not be loaded from the hub ({reason}); pass --data-dir, a folder"
            f" with {files}"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def unpacked(rows, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(pixels [n, H, W] or [n, H, W, 3], labels [n]) of a split of the hub's.

    The column is cast to pictures: a parquet file may have them as plain {bytes, path}.
    """
    from datasets import Image

    missing = {column, "label"}.difference(rows.column_names)
    if missing:
        raise ValueError(f"there is no column {sorted(missing)[0]}; it has {rows.column_names}")
    rows = rows.cast_column(column, Image())
    return np.stack([np.asarray(image) for image in rows[column]]), np.asarray(rows["label"])


def divided(read: dict[str, tuple[np.ndarray, np.ndarray]], name: str) -> Images:
    """The set with its own test images, and validation cut from the end of those for training."""
    (pixels, labels), test = (channels_first(*parts) for parts in read.values())
    if len(labels) <= HELD_OUT:
        raise ValueError(
            f"--data-dir must hold more than {HELD_OUT:,} training images, of which the last"
            f" {HELD_OUT:,} are for validation; got {len(labels):,}"
        )
    splits = {
        "train": (pixels[:-HELD_OUT], labels[:-HELD_OUT]),
        "valid": (pixels[-HELD_OUT:], labels[-HELD_OUT:]),
        "test": test,
    }
    splits = {split: (part.flatten(1), y) for split, (part, y) in splits.items()}
    return Images(name, splits, 255, tuple(pixels.shape[1:]))


def channels_first(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    found = torch.tensor(pixels)
    found = found[:, None] if found.dim() == 3 else found.permute(0, 3, 1, 2)
    return found.contiguous(), torch.tensor(labels).long()
