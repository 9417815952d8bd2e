"""eval: the figures of a trained model."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnirnn.commands.shared import OK, add_run_folder, at_least_one, at_least_zero, task_of
from dnirnn.config.registry import TASKS
from dnirnn.device import find_device
from dnirnn.options import flag
from dnirnn.training.trainer import load_weights, read_config, reading_config

TEXT_PLACES = ("corpus", "data_dir", "valid_file", "test_file")


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        help="with char-lm and digits: which part of the data (default: test)",
    )
    parent.add_argument(
        "--text",
        metavar="FILE",
        help="with char-lm: evaluate this UTF-8 file, whole, in place of a part of the run's data",
    )
    parent.add_argument(
        "--others",
        nargs="+",
        metavar="RUN",
        help="with char-lm: runs of the same symbols, whose mean prediction together with RUN's is"
        " measured: an ensemble",
    )
    dynamic = parent.add_argument_group("dynamic evaluation, with char-lm: the weights move")
    dynamic.add_argument(
        "--dynamic",
        action="store_true",
        help="also measure it while the model goes on learning from what it has read (Krause et al."
        " 2018); the run itself stays as it is",
    )
    dynamic.add_argument(
        "--dynamic-steps",
        type=at_least_one,
        metavar="STEPS",
        help="steps from one update to the next (default: 20)",
    )
    for name, what, unit in (
        ("rate", "the updates' learning rate", "RATE"),
        ("decay", "how strongly the weights are drawn back to where they began", "FRACTION"),
    ):
        dynamic.add_argument(
            f"--dynamic-{name}",
            type=at_least_zero,
            metavar=unit,
            help=f"{what} (default: searched for on validation)",
        )
    moved = parent.add_argument_group("where the data is now, if not where it was for training")
    for name in TEXT_PLACES:
        moved.add_argument(flag(name), metavar="PATH")


def run(arguments: argparse.Namespace) -> int:
    places = {name: getattr(arguments, name) for name in (*TEXT_PLACES, "text")}
    for name in ("dynamic_steps", "dynamic_rate", "dynamic_decay"):
        places[name] = getattr(arguments, name)
        if places[name] is not None and not arguments.dynamic:
            raise ValueError(f"{flag(name)} goes with --dynamic only; got {places[name]}")
    if arguments.dynamic:
        places |= {"dynamic": True, "dynamic_steps": arguments.dynamic_steps or 20}
    places["others"] = arguments.others
    if arguments.others and arguments.dynamic:
        raise ValueError("--others are measured as they are: no --dynamic")
    if arguments.text is not None and arguments.split is not None:
        raise ValueError(f"--split is of the run's data, --text another text; got {arguments.split}")
    evaluate(
        arguments.run, arguments.split, arguments.weights, places, arguments.device
    )
    return OK


def evaluate(
    run: Path, split: str | None, weights: str, data: dict[str, Any], device: str = "cpu"
) -> None:
    """Prints the figures of a run's model, of a task with data on a split of it, test if None.

    data: where the text or the images are now, where that is not what the run's configuration says;
        how a dynamic evaluation is made, if there is to be one.
    """
    place, config = find_device(device), read_config(run)
    task = TASKS[task_of(config, run)]
    with reading_config(run):
        model = task.restore(config)[0].to(place)
    known = load_weights(run, model, weights)
    given = {name: value for name, value in {"split": split, **data}.items() if value is not None}
    for name in given.keys() - task.DATA:
        tasks = " and ".join(other for other in TASKS if name in TASKS[other].DATA)
        raise ValueError(f"{flag(name)} goes with {tasks} runs only")
    if "split" in task.DATA:
        split = given.pop("split", "test")
        lines = task.evaluate({**config, **given}, model, split)
    else:
        lines = task.evaluate(config, model)
    print(f"{weights} model, update {known['update']:,} of {run}")
    print("\n".join(lines))
