"""demo: what synthetic gradients carry beyond a window, and a character model, in two minutes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dnirnn.commands import compare, sample, training
from dnirnn.commands.shared import add_jobs, finish, jobs_and_threads
from dnirnn.config.registry import TASKS
from dnirnn.reports.runs import Failure

MINUTES = 2.0
COPY, TEXT = 0.6, 0.3  # shares of the time; the rest is loading and drawing
STARTING = 0.15  # minutes of a run that are not training: starting, evaluating, saving
TRUNCATION = 4
# The network of results/reproduce/copy, and its synthetic gradients.
OPTIONS = dict(
    bits=1, hidden=128, evaluate_every=20_000, log_every=20_000, scale=1.0, discount=0.9,
    trace_decay=0.8,
)  # fmt: skip
WRITTEN = 400  # characters

INTRODUCTION = """\
1. Copy: read N random bits, wait for the end, reproduce them; N grows by one whenever it is solved.
   Gradients are carried back {steps} steps. With nothing at the cuts (none), what is learned ends near
   the window. With synthetic gradients (least-squares), it goes on beyond it.
"""
CONCLUSION = """\
   A window that holds the whole sequence is better still, where it fits: --truncation 40 here, and
   on texts (dnirnn train char-lm), where most of what matters lies a few steps back.
"""


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parent.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="where runs and results go (default: runs/demo)",
    )
    parent.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="MINUTES",
        help=f"wall clock for all of it, about (default: {MINUTES})",
    )
    add_jobs(parent)


def run(arguments: argparse.Namespace) -> int:
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores)
    return finish(demo(arguments.out, arguments.minutes, jobs, threads))


def demo(folder: Path, minutes: float, jobs: int, threads: int) -> list[Failure]:
    """Runs it in ``folder``, in about ``minutes`` of wall clock; the runs that failed.

    Done before, it prints the same again: runs that are done are kept.
    """
    print(INTRODUCTION.format(steps=TRUNCATION))
    rounds = -(-2 // jobs)
    each = max(minutes * COPY / rounds - STARTING, 0.02)
    options = dict(OPTIONS, truncation=TRUNCATION, minutes=each, threads=threads)
    varied = {"estimator": ["none", "least-squares"]}
    runs = compare.plan("copy", options, varied, folder / "copy")
    failures = compare.compare("copy", runs, folder / "copy", jobs, False)
    print(CONCLUSION)
    if failures:
        return failures
    print("2. A character model, and what it writes.\n")
    options = TASKS["char-lm"].Options(
        estimator="none",
        truncation=40,
        lr=4e-3,
        minutes=max(minutes * TEXT - STARTING, 0.02),
        threads=threads,
        evaluate_every=200_000,
    )
    training.train("char-lm", options, folder / "text")
    print()
    sample.sample(folder / "text", "best", WRITTEN, 0.7, "", 0)
    return []
