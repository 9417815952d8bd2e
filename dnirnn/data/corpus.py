"""Texts for the character language model: Penn Treebank, any UTF-8 file, or the built-in one."""

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dnirnn.data import Vocabulary, Words
from dnirnn.files import writing
from dnirnn.progress import bar, move

SPLITS = ("train", "valid", "test")
HUB = "ptb-text-only/ptb_text_only"
REVISION = "refs/convert/parquet"


PIECE = 2**20  # bytes of a file that are read at once
LARGE = 2**24  # bytes from which a file is read in pieces, and its symbols are kept on disk


class FileText:
    """The characters from start to end of a UTF-8 file, read in pieces.

    Raises ValueError, naming the option and the byte, for a file that is not UTF-8.
    """

    def __init__(self, path: Path, option: str, start: int = 0, end: int | None = None):
        self.path, self.option, self.start = path, option, start
        self.end = sum(map(len, self.whole())) if end is None else end

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[str]:
        at = 0
        for piece in self.whole():
            part = piece[max(0, self.start - at) : max(0, self.end - at)]
            if part:
                yield part
            at += len(piece)
            if at >= self.end:
                return

    def part(self, start: int, end: int) -> "FileText":
        return FileText(self.path, self.option, start, end)

    def whole(self) -> Iterator[str]:
        left, read, begun = b"", 0, False
        with open(self.path, "rb") as file:
            while True:
                data = file.read(PIECE)
                try:
                    text, used = codecs.utf_8_decode(left + data, "strict", not data)
                except UnicodeDecodeError as error:
                    at = read - len(left) + error.start
                    raise not_utf8(self.option, self.path, at, (left + data)[error.start]) from None
                if text and not begun:
                    text, begun = text.removeprefix(MARK), True
                yield text
                if not data:
                    return
                read += len(data)
                left = (left + data)[used:]


MARK = "\ufeff"  # the byte-order mark, which some editors write before a text and which is not of it


def not_utf8(option: str, path: Path, at: int, byte: int) -> ValueError:
    return ValueError(f"{option}: {path} is not UTF-8 text (byte {at} is 0x{byte:02x})")


def pieces(text: "str | FileText") -> Iterable[str]:
    return [text] if isinstance(text, str) else text


def beginning(text: "str | FileText", length: int) -> str:
    """The first ``length`` characters of a text."""
    if isinstance(text, str):
        return text[:length]
    return "".join(text.part(text.start, min(text.end, text.start + length)))


# By what convention the symbols of a corpus are counted, by its name; of any other, as of a file.
CONVENTIONS = {
    "ptb": "a space is one symbol, a line end one newline, <unk> five characters",
    "builtin": "every character of Python's help topics",
}
OF_A_FILE = "every character of the file, newlines included"


class Corpus(NamedTuple):
    """A text in three splits, and by what convention its symbols are counted."""

    name: str
    splits: "Mapping[str, str | FileText]"
    convention: str

    def describe(self, symbols: dict[str, Tensor]) -> str:
        """A line of it: ``symbols`` are those of its splits."""
        counts = " / ".join(f"{len(symbols[split]):,}" for split in SPLITS)
        return f"{self.name}: {counts} symbols in train / valid / test ({self.convention})"

    def fingerprint(self) -> str:
        """SHA-256 of the three splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            part = hashlib.sha256()
            for piece in pieces(self.splits[split]):
                part.update(piece.encode())
            digest.update(part.digest())
        return digest.hexdigest()

    def is_large(self) -> bool:
        """Whether a split is read from a file in pieces."""
        return any(isinstance(text, FileText) for text in self.splits.values())


def compact(text: str | FileText, vocabulary: Vocabulary | Words) -> Tensor:
    """The symbols of a text, each in as few bytes as the vocabulary needs."""
    whole, kind = vocabulary.parts(pieces(text)), vocabulary.dtype
    parts = [vocabulary.encode(piece).numpy().astype(kind) for piece in whole]
    return torch.from_numpy(np.concatenate(parts))


def cached(
    corpus: Corpus, vocabulary: Vocabulary, fingerprint: str, quiet: bool
) -> dict[str, Tensor]:
    """The symbols of a large corpus's splits, mapped from files in the cache; made where missing.

    The files are named by the text's content, so that a text is encoded once, wherever it lies:
    $XDG_CACHE_HOME/dnirnn/SHA-256/train.uint8 and so on.

    Raises StorageError where they can't be written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "dnirnn" / fingerprint
    kind = vocabulary.dtype
    found = {}
    for split in SPLITS:
        path = folder / f"{split}.{kind.name}"
        text = corpus.splits[split]
        if not path.exists() or path.stat().st_size != len(text) * kind.itemsize:
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            progress = bar(quiet, f"encoding {split} ")
            with writing(path):
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    with open(partial, "wb") as file:
                        done = 0
                        for piece in pieces(text):
                            file.write(vocabulary.encode(piece).numpy().astype(kind).data)
                            done += len(piece)
                            move(progress, done / len(text))
                    partial.replace(path)
                finally:
                    progress.close()
                    partial.unlink(missing_ok=True)
        # Copy on write: torch has no tensors that can't be written to, and the file stays.
        found[split] = torch.from_numpy(np.memmap(path, kind, "c"))
    return found


def load(
    corpus: str,
    data_dir: str | None = None,
    valid_file: str | None = None,
    test_file: str | None = None,
    words: bool = False,
) -> Corpus:
    """The corpus that the options of the same names ask for.

    corpus: ``ptb``, ``builtin``, or the path of a UTF-8 text file.
    data_dir: where ptb.train.txt, ptb.valid.txt and ptb.test.txt are, for ``ptb``; None: the hub.
    valid_file, test_file: splits of their own for a text file, instead of parts of it.
    words: its symbols are words, and spaces are between them.

    Raises ValueError or OSError, naming the option, for a file that is missing, empty or not UTF-8.
    """
    if data_dir is not None and corpus != "ptb":
        raise ValueError(f"--data-dir goes with --corpus ptb only; got --corpus {corpus}")
    if (valid_file or test_file) and corpus in ("ptb", "builtin"):
        raise ValueError(
            f"--valid-file and --test-file go with a text file only; got --corpus {corpus}"
        )
    if corpus == "ptb":
        treebank = penn_treebank(data_dir) if data_dir else penn_treebank_from_hub()
        if not words:
            return Corpus("Penn Treebank", {**treebank}, CONVENTIONS[corpus])
        spaced = {split: text.replace("_", " ") for split, text in treebank.items()}
        return Corpus("Penn Treebank", {**spaced}, Words.convention)
    if corpus == "builtin":
        text = builtin()
        convention = Words.convention if words else CONVENTIONS[corpus]
        return Corpus("builtin", divide(text, "builtin", words=words), convention)
    splits = text_file(corpus, valid_file, test_file, words)
    return Corpus(Path(corpus).name, splits, Words.convention if words else OF_A_FILE)


def penn_treebank(folder: str | Path) -> dict[str, str]:
    """Penn Treebank by characters, from Mikolov's word files in ``folder``.

    Every line is stripped, its spaces become ``_``, and it ends with one newline: 5,017,482 /
    393,042 / 442,423 symbols, an alphabet of 50.

    folder: holds ptb.train.txt, ptb.valid.txt and ptb.test.txt.

    Raises FileNotFoundError where one of them is missing, ValueError where one is not UTF-8 or
    empty.
    """
    splits = {}
    for split in SPLITS:
        path = Path(folder) / f"ptb.{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"--data-dir must be a folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt;"
                f" there is no {path}"
            )
        splits[split] = by_characters(read(path, "--data-dir").removesuffix("\n").split("\n"))
    return splits


def penn_treebank_from_hub() -> dict[str, str]:
    """The same as :func:`penn_treebank`, downloaded (or cached) by the package datasets.

    Raises OSError, saying what to pass instead, where the hub can't be reached.
    """
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(HUB, revision=REVISION)
    except Exception as error:
        # What comes here depends on the versions of datasets and of what it downloads with.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"--corpus ptb could not be loaded from the hub ({reason}); pass --data-dir, a folder"
            " with ptb.train.txt, ptb.valid.txt and ptb.test.txt"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    names = {"train": "train", "valid": "validation", "test": "test"}
    missing = [name for name in names.values() if name not in loaded]
    if missing:
        raise OSError(f"the hub's {HUB} has no split {missing[0]}; pass --data-dir instead")
    return {split: by_characters(loaded[name]["sentence"]) for split, name in names.items()}


def by_characters(lines: Iterable[str]) -> str:
    return "".join(line.strip().replace(" ", "_") + "\n" for line in lines)


def builtin() -> str:
    """The help topics that every CPython carries, one after the other: about 460,000 characters."""
    from pydoc_data.topics import topics

    return "\n\n".join(text.strip() for text in topics.values()) + "\n"


def text_file(
    path: str | Path,
    valid_file: str | None = None,
    test_file: str | None = None,
    words: bool = False,
) -> dict[str, str | FileText]:
    """A UTF-8 text file in three splits: see :func:`divide`; validation and test from own files."""
    text = text_of(path, "--corpus", "must be ptb, builtin or the path of a text file")
    valid = text_of(valid_file, "--valid-file") if valid_file else None
    test = text_of(test_file, "--test-file") if test_file else None
    return divide(text, str(path), valid, test, words)


def text_of(
    path: str | Path, option: str, expected: str = "must be a text file"
) -> str | FileText:
    """The text of a file; of a large one, to be read in pieces."""
    path = Path(path)
    if path.is_file() and path.stat().st_size >= LARGE:
        return FileText(path, option)
    return read(path, option, expected)


def divide(
    text: str | FileText,
    name: str,
    valid: str | FileText | None = None,
    test: str | FileText | None = None,
    words: bool = False,
) -> dict[str, str | FileText]:
    """Cuts validation and test, 5 % of the text each, from its end, unless they are given.

    words: cuts between words.
    """

    def part(start: int, end: int) -> str | FileText:
        return text[start:end] if isinstance(text, str) else text.part(start, end)

    def cut(at: int) -> int:
        if not words:
            return at
        coming = beginning(part(at, len(text)), 1000)
        return at + next((i for i, c in enumerate(coming, 1) if c in " \n"), 0)

    twentieth = len(text) // 20
    end = len(text) if test is not None else cut(len(text) - twentieth)
    middle = end if valid is not None else cut(end - twentieth)

    splits = {
        "train": part(0, middle),
        "valid": part(middle, end) if valid is None else valid,
        "test": part(end, len(text)) if test is None else test,
    }
    for split, symbols in splits.items():
        if not symbols:
            raise ValueError(f"corpus {name} is too short: its {split} split is empty")
    return splits


def read(path: str | Path, option: str, expected: str = "must be a text file") -> str:
    """The text of a file, exactly as it is but for a byte-order mark; errors name ``option``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option} {expected}; there is no file {path}")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{option}: {path} is empty")
    try:
        text = data.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise not_utf8(option, path, error.start, data[error.start]) from None
    if not text:
        raise ValueError(f"{option}: {path} is empty but for a byte-order mark")
    return text
