"""The options of char-lm."""

import dataclasses
from pathlib import Path

from dnirnn.config.options import (
    Checked,
    EstimatorOptions,
    NetworkOptions,
    RunOptions,
    TrainingOptions,
    changed,
    option,
)


@dataclasses.dataclass(frozen=True)
class TextOptions(Checked):
    """text"""

    corpus: str = option(
        "builtin",
        "ptb (Penn Treebank), builtin (Python's help topics, nothing to download) or the path of a"
        " UTF-8 text file, of which the last 5 % become test and the 5 % before validation",
        "CORPUS",
        place=True,
    )
    data_dir: str | None = option(
        None,
        "with ptb: the folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt",
        "FOLDER",
        shown="downloaded from the hub",
        place=True,
    )
    valid_file: str | None = option(
        None, "with a text file: validation from this file", "FILE", shown="a part of the text",
        place=True,
    )
    test_file: str | None = option(
        None, "with a text file: test from this file", "FILE", shown="a part of the text",
        place=True,
    )
    embedding: int = option(
        64, "size of the vector that stands for a character", "UNITS", at_least=1
    )


@dataclasses.dataclass(frozen=True)
class CharLMOptions(TextOptions, NetworkOptions, TrainingOptions, RunOptions):
    lr: float = changed(TrainingOptions, "lr", 2e-3)
    # On Penn Treebank's validation 1e-5 did best of 1e-4, 1e-5 and 1e-6, and there a linear
    # predictor better than one with a hidden layer: results/README.md.
    estimator_hidden: tuple = changed(
        EstimatorOptions, "estimator_hidden", ("linear",), shown="linear"
    )
    estimator_lr: float = changed(TrainingOptions, "estimator_lr", 1e-5)


def resolve(options: CharLMOptions) -> CharLMOptions:
    """The same options with absolute paths, so that a run can be found again from elsewhere."""
    paths = {
        name: str(Path(value).resolve())
        for name in ("data_dir", "valid_file", "test_file")
        if (value := getattr(options, name)) is not None
    }
    if options.corpus not in ("ptb", "builtin"):
        paths["corpus"] = str(Path(options.corpus).resolve())
    return dataclasses.replace(options, **paths)
