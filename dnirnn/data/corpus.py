"""Texts for the character language model: Penn Treebank, any UTF-8 file, or the built-in one."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "valid", "test")
HUB = "ptb-text-only/ptb_text_only"
REVISION = "refs/convert/parquet"


class Corpus(NamedTuple):
    """A text in three splits, and by what convention its symbols are counted."""

    name: str
    splits: dict[str, str]
    convention: str

    def describe(self) -> str:
        counts = " / ".join(f"{len(self.splits[split]):,}" for split in SPLITS)
        return f"{self.name}: {counts} symbols in train / valid / test ({self.convention})"

    def fingerprint(self) -> str:
        """SHA-256 of the three splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(hashlib.sha256(self.splits[split].encode()).digest())
        return digest.hexdigest()


def load(
    corpus: str,
    data_dir: str | None = None,
    valid_file: str | None = None,
    test_file: str | None = None,
) -> Corpus:
    """The corpus that the options of the same names ask for.

    corpus: ``ptb``, ``builtin``, or the path of a UTF-8 text file.
    data_dir: where ptb.train.txt, ptb.valid.txt and ptb.test.txt are, for ``ptb``; None: the hub.
    valid_file, test_file: splits of their own for a text file, instead of parts of it.

    Raises ValueError or OSError, naming the option, for a file that is missing, empty or not UTF-8.
    """
    if data_dir is not None and corpus != "ptb":
        raise ValueError(f"--data-dir goes with --corpus ptb only; got --corpus {corpus}")
    if (valid_file or test_file) and corpus in ("ptb", "builtin"):
        raise ValueError(
            f"--valid-file and --test-file go with a text file only; got --corpus {corpus}"
        )
    if corpus == "ptb":
        splits = penn_treebank(data_dir) if data_dir else penn_treebank_from_hub()
        convention = "a space is one symbol, a line end one newline, <unk> five characters"
        return Corpus("Penn Treebank", splits, convention)
    if corpus == "builtin":
        text = builtin()
        return Corpus("builtin", divide(text, "builtin"), "every character of Python's help topics")
    splits = text_file(corpus, valid_file, test_file)
    return Corpus(Path(corpus).name, splits, "every character of the file, newlines included")


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
    path: str | Path, valid_file: str | None = None, test_file: str | None = None
) -> dict[str, str]:
    """A UTF-8 text file in three splits: see :func:`divide`; validation and test from own files."""
    text = read(path, "--corpus", "must be ptb, builtin or the path of a text file")
    valid = read(valid_file, "--valid-file") if valid_file else None
    test = read(test_file, "--test-file") if test_file else None
    return divide(text, str(path), valid, test)


def divide(
    text: str, name: str, valid: str | None = None, test: str | None = None
) -> dict[str, str]:
    """Cuts validation and test, 5 % of the text each, from its end, unless they are given."""
    part = len(text) // 20
    end = len(text) if test is not None else len(text) - part
    middle = end if valid is not None else end - part
    splits = {
        "train": text[:middle],
        "valid": text[middle:end] if valid is None else valid,
        "test": text[end:] if test is None else test,
    }
    for split, symbols in splits.items():
        if not symbols:
            raise ValueError(f"corpus {name} is too short: its {split} split is empty")
    return splits


def read(path: str | Path, option: str, expected: str = "must be a text file") -> str:
    """The text of a file, exactly as it is; errors name ``option``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option} {expected}; there is no file {path}")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{option}: {path} is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{option}: {path} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x})"
        ) from None
