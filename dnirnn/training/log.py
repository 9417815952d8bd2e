"""The log of a run: one JSON object a line, and TensorBoard's copy of it."""

import hashlib
import json
import os
import warnings
from pathlib import Path

from dnirnn.checks import check_paths
from dnirnn.files import writing

WALL_CLOCK = ("seconds", "symbols_per_second")  # fields that two equal runs don't share


class Log:
    """Appends rows to a log.jsonl, from the byte offset ``end`` on; what stood after it is cut.

    tensorboard: also writes every number of a row to the folder tensorboard/ beside the log, under
        kind/field at its update.
    update: the update of the last row that stays.

    sha256: of what stands before ``end``, if known. Where it is another, or there is less, a
        warning says so, and whole rows are gone on from.

    Raises StorageError where it can't be written; ValueError where TensorBoard is not installed.
    """

    def __init__(
        self,
        path: Path,
        end: int = 0,
        tensorboard: bool = False,
        update: int = 0,
        sha256: str | None = None,
    ):
        known = path.read_bytes()[:end] if path.exists() else b""
        if len(known) < end or sha256 not in (None, hashlib.sha256(known).hexdigest()):
            warnings.warn(
                f"log {path} is not what it was when the last checkpoint was made"
                f" ({len(known)} bytes of {end}): the run goes on from its whole rows",
                stacklevel=4,
            )
            known = known[: known.rfind(b"\n") + 1]
        self.path, self.offset, self.digest = path, len(known), hashlib.sha256(known)
        self.board = summary_writer(path.parent / "tensorboard", update) if tensorboard else None
        with writing(path):
            self.file = open(path, "r+b" if path.exists() else "x+b", buffering=0)
            self.file.truncate(self.offset)
            self.file.seek(self.offset)

    def write(self, row: dict) -> None:
        """Appends a row with the fields "kind" and "update". Raises StorageError."""
        line = json.dumps(row).encode() + b"\n"
        with writing(self.path):
            sent = 0
            while sent < len(line):
                sent += self.file.write(line[sent:])
        self.offset += len(line)
        self.digest.update(line)
        if self.board is not None:
            for name, value in row.items():
                if name not in ("kind", "update") and isinstance(value, (int, float)):
                    self.board.add_scalar(f"{row['kind']}/{name}", value, row["update"])

    def make_again(self) -> None:
        """Writes the rows anew where the file was removed: they are there as long as it is open."""
        self.file.seek(0)
        rows = self.file.read()
        self.file.close()
        with writing(self.path):
            self.file = open(self.path, "w+b", buffering=0)
            self.file.write(rows)

    def sync(self) -> None:
        """Makes the rows written so far last."""
        with writing(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def summary_writer(folder: Path, update: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard=True needs the package tensorboard: pip install tensorboard"
        ) from None
    with writing(folder):
        return SummaryWriter(str(folder), purge_step=update + 1)


def read_log(path: str | Path, kind: str | None = None) -> list[dict]:
    """The rows of a log.jsonl, or those of a kind ("train", "valid").

    A last line without its end (a killed run's) is left out. Raises ValueError naming the line of
    one that is no JSON object, FileNotFoundError where there is no log.
    """
    check_paths(path=path)
    *lines, _ = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows += [row] if kind in (None, row["kind"]) else []
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"log {path}: line {number} is not a row of a log") from None
    return rows
