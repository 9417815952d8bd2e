"""The options of char-lm."""

import dataclasses
from pathlib import Path

from dnirnn.config.network import NetworkOptions
from dnirnn.config.parallel import Sharing, check_in_parts, in_parts
from dnirnn.config.saved import from_config
from dnirnn.config.task import TaskOptions
from dnirnn.estimators.base import EstimatorConfig
from dnirnn.groups import OptionGroup
from dnirnn.options import choice, flag, option, override


@dataclasses.dataclass(frozen=True, init=False)
class TextOptions(OptionGroup):
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
    train_share: float = option(
        1.0, "of the training text, how much is learned from, from its start on (0.1: the first tenth); its"
        " vocabulary is that of all of it",
        "FRACTION", above=0, at_most=1,
    )  # fmt: skip
    embedding: int = option(
        64, "size of the vector that stands for a character", "UNITS", at_least=1
    )
    tied: bool = option(
        False,
        "read what comes next by the same vectors, after a projection where --embedding is not the size"
        " of the core's output",
    )


@dataclasses.dataclass(frozen=True, init=False)
class TeacherOptions(OptionGroup):
    """teachers"""

    teachers: tuple = option(
        (),
        "run folders of char-lm, on the same symbols, whose mean prediction is learned too; their best"
        " weights are taken",
        "RUN",
        many=str,
        place=True,
    )
    teacher_weight: float = option(
        0.5,
        "with --teachers or --codistill: what their predictions count for in the loss; the text counts for the rest",
        "FRACTION",
        at_least=0,
        at_most=1,
    )
    temperature: float = option(
        1.0,
        "with --teachers or --codistill: divides their logits and the student's; above 1 they show more of what is"
        " unlikely",
        "NUMBER",
        above=0,
    )
    codistill: bool = option(
        False,
        "several workers, started by torchrun, train on shares of the text, each in a folder of its own,"
        " and learn what old copies of the others predict",
    )
    exchange_every: int = option(
        500, "with --codistill: updates from one exchange of copies to the next", "UPDATES", at_least=1
    )
    burn_in: int = option(
        1000, "with --codistill: updates before the copies teach", "UPDATES", at_least=0
    )
    worker: int | None = option(
        None, "with --codistill: which of them this one is", "NUMBER", at_least=0,
        shown="as torchrun sets it",
    )
    workers: int | None = option(
        None, "with --codistill: how many there are", "NUMBER", at_least=2, shown="as torchrun sets it"
    )
    smoothing: float = option(
        0.0,
        "label smoothing: what a uniform prediction counts for in the loss, in place of teachers",
        "FRACTION",
        at_least=0,
        below=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        both, one = ("teacher_weight", "temperature"), ("exchange_every", "burn_in", "worker", "workers")
        for names, there, required in (
            (both, self.teachers or self.codistill, "--teachers or --codistill"),
            (one, self.codistill, "--codistill"),
        ):
            for name in names:
                value = getattr(self, name)
                if not there and value != getattr(TeacherOptions, name):
                    raise ValueError(f"{flag(name)} goes with {required} only; got {value}")
        if bool(self.teachers) + self.codistill + bool(self.smoothing) > 1:
            raise ValueError("--teachers, --codistill and --smoothing are one or the other")
        if (self.worker is None) != (self.workers is None) or (
            self.workers is not None and self.worker >= self.workers
        ):
            raise ValueError(
                "--worker and --workers are given together, the first below the second; got"
                f" {self.worker} and {self.workers}"
            )


@dataclasses.dataclass(frozen=True, init=False)
class ProcessOptions(OptionGroup):
    """processes"""

    parallel: Sharing = choice(Sharing.registry, "data", "what torchrun's processes share")
    layer_predictor_hidden: tuple = option(
        (),
        "with --parallel decoupled: widths of the hidden layers of the predictors between layers, which"
        " are given the symbol that is to be predicted and learn at --lr",
        "UNITS",
        at_least=1,
        many=int,
        shown="none: they are linear",
        needs="in_parts",
    )


@dataclasses.dataclass(frozen=True, init=False)
class CharLMOptions(
    TextOptions, TeacherOptions, NetworkOptions, ProcessOptions, TaskOptions
):
    # What trains best for its time, on text: results/README.md, and the recipes.
    lr: float = override(TaskOptions, "lr", default=2e-3)
    truncation: int = override(NetworkOptions, "truncation", default=50)
    # On Penn Treebank's validation 1e-5 did best of 1e-4, 1e-5 and 1e-6, and there a linear
    # predictor better than one with a hidden layer: results/README.md.
    estimator: EstimatorConfig = override(
        NetworkOptions, "estimator", default="none", shown="none",
        defaults={"estimator_hidden": ("linear",)},
    )  # fmt: skip
    estimator_lr: float = override(TaskOptions, "estimator_lr", default=1e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_in_parts(self, "deep")
        if not in_parts(self):
            return
        for name, given in (("skip_inputs", self.core.skip_inputs), ("tied", self.tied),
                            ("codistill", self.codistill)):  # fmt: skip
            if given:
                raise ValueError(
                    f"{flag(name)} does not go with --parallel decoupled, where a layer reads the one"
                    " below it alone"
                )


@dataclasses.dataclass(frozen=True, init=False)
class WordLMOptions(CharLMOptions):
    embedding: int = override(TextOptions, "embedding", default=256)
    rarest: int = option(
        1,
        "words that the training text has less often are read as <unk>, which is then a word like any",
        "TIMES",
        at_least=1,
    )


BY_TASK = {"char-lm": CharLMOptions, "word-lm": WordLMOptions}


def options_of(config: dict) -> CharLMOptions:
    """The options of a run's configuration."""
    return from_config(BY_TASK[config["task"]], config)


def resolve(options: CharLMOptions) -> CharLMOptions:
    """The same options with absolute paths, so that a run can be found again from elsewhere."""
    paths = {
        name: str(Path(value).resolve())
        for name in ("data_dir", "valid_file", "test_file")
        if (value := getattr(options, name)) is not None
    }
    paths["teachers"] = tuple(str(Path(run).resolve()) for run in options.teachers)
    if options.corpus not in ("ptb", "builtin"):
        paths["corpus"] = str(Path(options.corpus).resolve())
    return dataclasses.replace(options, **paths)
