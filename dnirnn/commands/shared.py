"""What several commands share: run folders as arguments, jobs, a run's task made ready again."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnirnn.config.registry import TASKS
from dnirnn.config.saved import from_config
from dnirnn.config.task import Task
from dnirnn.device import find_device
from dnirnn.reports.runs import Failure
from dnirnn.training.trainer import read_config, reading_config

OK, FAILED, BAD_INPUT = 0, 1, 2


def say(message: str) -> None:
    """One line on stderr."""
    rank = rank_here()
    who = "dnirnn" if rank is None else f"dnirnn, rank {rank}"
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr)


def rank_here() -> int | None:
    """Which of torchrun's processes this is; None where it is the only one."""
    return int(os.environ.get("RANK", 0)) if os.environ.get("WORLD_SIZE", "1") != "1" else None


def sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}." if summary else ""


def task_parsers(
    parent: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[str | None, argparse.ArgumentParser | None]:
    """Gives a command a parser for each task: the task that the words ask for, and its parser."""
    tasks = parent.add_subparsers(title="tasks", metavar="TASK", dest="task", required=True)
    found = None, None
    for name in TASKS:
        summary = summary_of(name)
        parser = tasks.add_parser(name, help=summary, description=sentence(summary))
        if words[1:2] == [name]:
            found = name, parser
    return found


def summary_of(task: str) -> str:
    """The first line of the docstring of a task's module, without its name."""
    line = (TASKS[task].__doc__ or "").split("\n")[0].rstrip(".")
    return line.removeprefix(f"{task}: ")


def add_run_folder(parent: argparse.ArgumentParser) -> None:
    parent.add_argument("run", type=Path, metavar="RUN", help="the run folder of dnirnn train")
    parent.add_argument(
        "--weights",
        choices=("best", "latest"),
        default="best",
        help="those that did best on validation, or the last ones saved (default: best)",
    )
    parent.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="where to compute: cpu, cuda or cuda:N, wherever it was trained (default: cpu)",
    )


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return int(text)


def at_least_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0; got {text}")
    return value


def add_jobs(group: Any) -> None:
    group.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="RUNS",
        help="runs at a time, which share the cores: small networks learn more in all as many runs"
        " of one thread than as one of many (default: one a core, and one on a GPU)",
    )
    group.add_argument(
        "--on",
        metavar="ray[:ADDRESS]",
        help="where the runs go: tasks of the Ray cluster at ADDRESS (auto: the one that is there), whose"
        " machines all see the folder, or of a local one where none is given (default: processes here)",
    )


def jobs_and_threads(jobs: int | None, cores: int, device: str = "cpu") -> tuple[int, int]:
    """Runs at a time, and the threads of each: what is left over of the cores is shared.

    jobs: None: one a core, and one where they would share a GPU.
    """
    on_gpu = find_device(device).type == "cuda"
    jobs = (1 if on_gpu else cores) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {jobs}")
    return jobs, max(1, cores // jobs)


def finish(failures: Sequence[Failure]) -> int:
    for failure in failures:
        say(f"{failure.run}: {failure.reason}")
    return FAILED if failures else OK


def built(run: Path, device: str) -> Task:
    """A run's task, its model on the device, with fresh weights."""
    place, config = find_device(device), read_config(run)
    module = TASKS[task_of(config, run)]
    with reading_config(run):
        options = from_config(module.Options, config)
        module.restore(config)  # what it names can be made: of what is wrong, this is the place
    task = module.build(options)
    task.model.to(place)
    return task


def task_of(config: dict, run: Path) -> str:
    if config.get("task") not in list(TASKS):
        raise ValueError(f"{run} is not a run of {' or '.join(TASKS)}")
    return config["task"]
