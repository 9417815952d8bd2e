"""demo: what synthetic gradients carry beyond a window, and a character model, in two minutes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnirnn.commands import compare, training
from dnirnn.config.registry import TASKS
from dnirnn.reports.runs import Failure

MINUTES = 2.0
COPY, TEXT = 0.6, 0.3  # shares of the time; the rest is loading and drawing
STARTING = 0.15  # minutes of a run that are not training: starting, evaluating, saving
TRUNCATION = 4
WRITTEN = 400  # characters

INTRODUCTION = """\
1. Copy: read N random bits, wait for the end, say them again; N grows by one whenever it is solved.
   Gradients are carried back {steps} steps. With nothing at the cuts (none), what is learned ends near
   the window. With synthetic gradients (least-squares), it goes on beyond it.
"""
CONCLUSION = """\
   A window that holds the whole sequence is better still, where it fits: --truncation 40 here, and
   on texts (dnirnn train char-lm), where most of what matters lies a few steps back.
"""


def demo(folder: Path, minutes: float, jobs: int, threads: int) -> list[Failure]:
    """Runs it in ``folder``, in about ``minutes`` of wall clock; the runs that failed.

    Done before, it prints the same again: runs that are done are kept.
    """
    print(INTRODUCTION.format(steps=TRUNCATION))
    arms = [(TRUNCATION, "none"), (TRUNCATION, "least-squares")]
    rounds = -(-len(arms) // jobs)
    each = max(minutes * COPY / rounds - STARTING, 0.02)
    networks = copy_options(minutes=each, threads=threads)
    runs = compare.plan(networks, folder / "copy", arms, (0,), {})
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
    training.sample(folder / "text", "best", WRITTEN, 0.7, "", 0)
    return []


def copy_options(**more: Any) -> Sequence[Any]:
    """The network of results/reproduce/copy, without and with synthetic gradients."""
    common = dict(bits=1, hidden=128, evaluate_every=20_000, log_every=20_000, **more)
    options = TASKS["copy"].Options
    fitted = dict(estimator="least-squares", scale=1.0, discount=0.9, trace_decay=0.8)
    return [options(estimator="none", **common), options(**fitted, **common)]
