"""distill: a language model trained on a text and on the predictions of others."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dnirnn.commands.evaluate import TEXT_PLACES
from dnirnn.commands.training import add_out, chosen_by, start
from dnirnn.config.arguments import add_options, given
from dnirnn.config.registry import TASKS
from dnirnn.training.trainer import read_config


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    options = TASKS["char-lm"].Options
    parent.add_argument(
        "teachers",
        nargs="+",
        metavar="RUN",
        help="run folders of trained char-lm or word-lm, on the same symbols: the teachers, whose mean"
        " prediction is learned beside the text. Where the text is, unless it is given, is taken from the first one's"
        " configuration",
    )
    add_out(parent, options)
    add_options(parent, options, [chosen_by(options, words, {})], omit=("teachers", "smoothing"))


def run(arguments: argparse.Namespace) -> int:
    config, flags = read_config(Path(arguments.teachers[0])), given(arguments)
    task = "word-lm" if config.get("task") == "word-lm" else "char-lm"
    if "corpus" not in flags:
        flags = {name: config[name] for name in TEXT_PLACES if name in config} | flags
    if task == "word-lm":
        flags["rarest"] = config["rarest"]
    options = TASKS[task].Options(**flags, teachers=tuple(arguments.teachers))
    return start(task, options, arguments)
