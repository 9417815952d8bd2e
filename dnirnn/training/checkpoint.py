"""Checkpoints: folders of tensors and state that are whole, or are not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from dnirnn.files import writing
from dnirnn.renamed import tensors_by_name_of_now

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is not what it should be: damaged, incomplete, or another model's."""


def save(folder: Path, tensors: dict[str, Tensor], state: dict) -> None:
    """Writes the checkpoint ``folder``, whole or not at all: beside it, to the disk, then renamed.

    tensors: any names; state: JSON-able. See :func:`flatten`.

    Raises StorageError, leaving nothing behind, where the disk or the permissions don't allow it.
    """
    # Dense clones: safetensors refuses strides and tensors that share memory (a tied readout).
    contents = {
        TENSORS: safetensors.save({k: dense(v) for k, v in tensors.items()}),
        STATE: json.dumps(state).encode(),
    }
    contents[MANIFEST] = manifest(contents)
    partial = folder.parent / f".{folder.name}.partial"
    with writing(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for name, content in contents.items():
                write(partial / name, content)
            sync(partial)
            partial.rename(folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def load(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The (tensors, state) of a checkpoint, on the CPU; nothing is unpickled.

    Raises CheckpointError where a file is missing or any byte is not what was written.
    """
    contents = {}
    for name in (TENSORS, STATE, MANIFEST):
        try:
            contents[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {folder} is incomplete: it has no {name}") from None
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {folder}: {name} can't be read: {error.strerror}"
            ) from None
    found = contents.pop(MANIFEST)
    # Every byte of the manifest follows from the other files, so it needs no sum of its own.
    if found != manifest(contents):
        raise CheckpointError(f"checkpoint {folder} is damaged: {difference(found, contents)}")
    try:
        tensors, state = safetensors.load(contents[TENSORS]), json.loads(contents[STATE])
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} can't be read: {error}") from None
    # Clones, because BLAS may round differently on memory that torch did not align.
    return {name: tensor.clone() for name, tensor in tensors.items()}, state


def load_tree(folder: Path) -> Any:
    """The tree whose parts :func:`save` wrote. Raises CheckpointError as :func:`load` does."""
    tensors, state = load(folder)
    with reading(folder):
        tree = unflatten(tensors, state)
        if not isinstance(tree, dict):
            raise TypeError(f"it is {tree!r:.40}")
        if isinstance(model := tree.get("model"), dict):
            tree["model"] = tensors_by_name_of_now(model)
        return tree


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints update-... in a folder, oldest first; none where there is no folder."""
    found = Path(folder).glob("update-*")
    numbered = (path for path in found if path.name.removeprefix("update-").isdecimal())
    return sorted(numbered, key=update_of)


def name_of(update: int) -> str:
    """The name of an update's checkpoint."""
    return f"update-{update:08d}"


def update_of(checkpoint: Path) -> int:
    """The update that a checkpoint was made at."""
    return int(checkpoint.name.removeprefix("update-"))


def keep_last(folder: Path, count: int) -> None:
    """Removes all but the last ``count`` checkpoints of a folder, and what a killed run left."""
    for checkpoint in checkpoints(folder)[:-count]:
        remove(checkpoint)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint; killed on the way, it leaves no half of one under its name."""
    with writing(checkpoint):
        partial = checkpoint.parent / f".{checkpoint.name}.partial"
        checkpoint.rename(partial)
        shutil.rmtree(partial)


def check_fit(folder: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises CheckpointError naming what differs where the tensors are not those of this model."""
    differing = [f"{name} is missing" for name in expected if name not in found]
    differing += [f"{name} is unknown" for name in found if name not in expected]
    for name in filter(found.__contains__, expected):
        there, here = (f"{tuple(t.shape)} {t.dtype}" for t in (found[name], expected[name]))
        if there != here:
            differing.append(f"{name} is {there} there, {here} here")
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"checkpoint {folder} is of another model: {', '.join(differing[:3])}{more}"
        )


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """(tensors by their path, the JSON-able rest) of dicts, lists, tuples, tensors and scalars.

    Raises TypeError naming the path of anything else.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            if path in tensors:
                raise TypeError(f"two tensors at {path}")
            tensors[path] = value
            return {"$tensor": path}
        if isinstance(value, dict):
            items = {key: encode(item, f"{path}.{key}") for key, item in value.items()}
            plain = all(isinstance(key, str) and not key.startswith("$") for key in items)
            return items if plain else {"$items": [[key, item] for key, item in items.items()]}
        if isinstance(value, (list, tuple)):
            each = [encode(item, f"{path}.{i}") for i, item in enumerate(value)]
            return {"$tuple": each} if isinstance(value, tuple) else each
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise TypeError(f"{path} can't be kept in a checkpoint: it is a {type(value).__name__}")

    encoded = {key: encode(value, key) for key, value in tree.items()}
    return tensors, encoded


def unflatten(tensors: dict[str, Tensor], state: Any) -> Any:
    """The tree that :func:`flatten` took apart."""
    if isinstance(state, dict):
        if "$tensor" in state:
            return tensors[state["$tensor"]]
        if "$tuple" in state:
            return tuple(unflatten(tensors, item) for item in state["$tuple"])
        if "$items" in state:
            return {key: unflatten(tensors, item) for key, item in state["$items"]}
        return {key: unflatten(tensors, item) for key, item in state.items()}
    if isinstance(state, list):
        return [unflatten(tensors, item) for item in state]
    return state


def dense(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def manifest(contents: dict[str, bytes]) -> bytes:
    """The size and SHA-256 of every file, as manifest.json holds them."""
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    return json.dumps({"format": FORMAT, "files": files}, indent=1).encode()


def difference(found: bytes, contents: dict[str, bytes]) -> str:
    """What a manifest has that the files don't."""
    expected = json.loads(manifest(contents))
    try:
        written = json.loads(found)
        if written["format"] != FORMAT:
            return f"its format is {written['format']}, this version reads {FORMAT}"
        for name, is_now in expected["files"].items():
            was = written["files"][name]
            if was["bytes"] != is_now["bytes"]:
                return f"{name} has {is_now['bytes']} bytes, {was['bytes']} were written"
            if was["sha256"] != is_now["sha256"]:
                return f"the SHA-256 of {name} is not the one in {MANIFEST}"
    except (ValueError, KeyError, TypeError):
        pass
    return f"{MANIFEST} is not what was written"


def write(path: Path, content: bytes) -> None:
    """Writes a new file through to the disk."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """Writes a file anew, whole or not at all. Raises StorageError."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            partial.unlink(missing_ok=True)
            write(partial, content)
            partial.replace(path)
            sync(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def sync(folder: Path) -> None:
    """Makes the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns what a missing or absurd entry of a checkpoint raises into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"checkpoint {folder} is incomplete: it has no {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {folder} holds what no run wrote: {text}") from None
