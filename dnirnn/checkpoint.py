"""Checkpoints: folders of tensors and state that are whole or are not there."""

from pathlib import Path

from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that can't be read as what it should be: damaged, incomplete, or another model's."""


class StorageError(ValueError):
    """A folder that can't be written: no space left, no permission, not a folder."""


def save(folder: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Writes the checkpoint ``folder``, whole or not at all.

    Raises StorageError, leaving nothing behind, where the disk or the permissions don't allow it.
    """
    raise NotImplementedError


def load(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The (tensors, state) of a checkpoint.

    Raises CheckpointError where any byte is not what was written.
    """
    raise NotImplementedError


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints update-... in a folder, oldest first."""
    raise NotImplementedError
