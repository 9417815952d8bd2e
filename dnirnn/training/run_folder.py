"""Run folders: what is in one, whose it is, and how it came to be so."""

import fcntl
import itertools
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnirnn.renamed import by_name_of_now
from dnirnn.training import checkpoint as ckpt
from dnirnn.training.checkpoint import CheckpointError
from dnirnn.training.layout import upgraded

# What a run folder holds.
CONFIG, LOG, RESULT, HISTORY = "config.json", "log.jsonl", "result.json", "history.jsonl"
CHECKPOINTS, BEST = "checkpoints", "best"


class AnotherRun(ValueError):
    """A folder that holds a run of another configuration. differing: the keys, dotted."""

    def __init__(self, message: str, differing: list[str]):
        super().__init__(message)
        self.differing = differing


def read_config(folder: str | Path) -> dict:
    """The run_config of a run folder. Raises ValueError where it holds none."""
    config = read_json(Path(folder) / CONFIG)
    if config is None:
        raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}")
    if not isinstance(config, dict):
        raise ValueError(f"{Path(folder) / CONFIG} must hold an object; got {config!r:.40}")
    return upgraded(config)


@contextmanager
def reading_config(folder: str | Path) -> Iterator[None]:
    """Turns what a wrong value in a run's config.json raises into a ValueError that says so."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{Path(folder) / CONFIG} describes no run: it has no {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{Path(folder) / CONFIG} describes no run: {text}") from None


def check_owner(
    folder: Path, path: Path, tree: dict, config: dict, may_change: Collection[str] = ()
) -> None:
    """Raises CheckpointError where a checkpoint is of another run than the folder's.

    What the run has changed in its history, and may change now, may differ.
    """
    there = tree.get("config")
    if there is None:  # made before checkpoints named their run
        return
    rows = [by_name_of_now(row.get("changed", {})) for row in history(folder)]
    changed = {*may_change, *(key for row in rows for key in row)}
    others = [key for key, *_ in differing(there, config) if key not in changed]
    if others:
        raise CheckpointError(
            f"checkpoint {path} is of another run: its {', '.join(others[:3])} differ"
            f" from {folder / CONFIG}"
        )


def history(folder: str | Path) -> list[dict]:
    """The rows of a run's history.jsonl: how it was begun anew, changed, moved. None: no rows."""
    try:
        lines = (Path(folder) / HISTORY).read_bytes().split(b"\n")[:-1]
        return [row for line in lines if isinstance(row := json.loads(line), dict)]
    except FileNotFoundError:
        return []
    except ValueError:
        raise ValueError(f"{Path(folder) / HISTORY} is damaged: a line is not JSON") from None


def note(folder: Path, **row: Any) -> None:
    """Adds a row to a run's history."""
    path = folder / HISTORY
    before = path.read_bytes() if path.exists() else b""
    row = {name: value for name, value in row.items() if value != {}}
    ckpt.replace(path, before + json.dumps(row).encode() + b"\n")


def write_config(folder: Path, config: dict) -> None:
    ckpt.replace(folder / CONFIG, json.dumps(config, indent=1).encode())


def take_down_change(folder: Path, update: int, known: dict, config: dict) -> None:
    """Writes how ``config`` differs from the folder's, at that update, and puts it in its place."""
    changed = {key: [was, now] for key, was, now in differing(known, config)}
    moved = {
        key: [known.get(key), config[key]]
        for key in places_of(known, config) & config.keys()
        if known.get(key) != config[key]
    }
    if changed or moved:
        note(folder, update=update, changed=changed, moved=moved)
    write_config(folder, config)


def put_aside(folder: Path) -> None:
    """Moves the run that a folder holds, if any, to a name beside it that is free."""
    if not (folder / CONFIG).exists() and not (folder / CHECKPOINTS).exists():
        return
    with locked(folder):
        aside = free_name(folder, "before")
        with ckpt.writing(folder):
            folder.rename(aside)
            folder.mkdir()
        note(folder, update=0, restarted=aside.name)


def free_name(path: Path, word: str) -> Path:
    """path.word-1, or with the first number that is not taken."""
    names = (path.with_name(f"{path.name}.{word}-{n}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def check_config(folder: Path, config: dict, may_change: Collection[str] = ()) -> None:
    """Raises AnotherRun where the folder holds another configuration, or checkpoints of none.

    may_change: keys that may differ.
    """
    known = read_json(folder / CONFIG)
    if known is None:
        if (folder / LOG).exists() or (folder / CHECKPOINTS).exists():
            raise ValueError(f"{folder} holds a run but no {CONFIG}: choose another folder")
        return
    if not isinstance(known, dict):
        raise ValueError(f"{folder / CONFIG} must hold an object; got {known!r:.40}")
    found = [one for one in differing(known, config) if one[0] not in may_change]
    if found:
        text = ", ".join(f"{key} ({was!r} there, {now!r} here)" for key, was, now in found)
        raise AnotherRun(
            f"{folder} holds a run of another configuration: {text}; choose another folder",
            [key for key, *_ in found],
        )


def differing(known: dict, config: dict) -> list[tuple[str, Any, Any]]:
    """(key, its value in one, in the other) of what makes two configurations two runs.

    A key that one of them lacks stands there at the other's default, if that names one.
    """
    known, config = upgraded(known), upgraded(config)
    ignored = {"defaults", "places", "version", *places_of(known, config)}
    sides = []
    for one, other in ((known, config), (config, known)):
        own = {key: value for key, value in one.items() if key not in ignored}
        usual = {key: value for key, value in defaults_of(other).items() if key in other}
        sides.append(dotted({**{k: v for k, v in usual.items() if k not in ignored}, **own}))
    there, here = sides
    return [
        (key, there.get(key, "not given"), here.get(key, "not given"))
        for key in sorted(there.keys() | here.keys())
        if there.get(key, dotted) != here.get(key, dotted)
    ]


def places_of(*configs: dict) -> set[str]:
    """The keys of where data is, which do not tell runs apart."""
    named = (config.get("places", ()) for config in configs)
    return {key for keys in named if isinstance(keys, list) for key in keys}


def defaults_of(config: dict) -> dict:
    found = config.get("defaults", {})
    return found if isinstance(found, dict) else {}


def dotted(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted path."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: leaf
        for name, item in tree.items()
        for key, leaf in dotted(item, f"{path}.{name}" if path else name).items()
    }


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none. Raises ValueError where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is damaged: it is not JSON") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes from training in it at the same time."""
    with ckpt.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use: another process trains there") from None
        except OSError:
            pass  # A file system without locks.
        yield
    finally:
        os.close(descriptor)
