"""compare: cores, truncations and estimators on one task, a run folder each, and what came out."""

import dataclasses
from collections.abc import Sequence
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dnirnn.config.cores import described
from dnirnn.config.registry import TASKS
from dnirnn.config.task import Figure, figures_of, steps_per_update
from dnirnn.reports import plots
from dnirnn.reports.curves import points
from dnirnn.reports.runs import (
    Failure,
    Run,
    checked,
    run_missing,
    shown_figure,
    write_csv,
    write_log,
)
from dnirnn.training.trainer import LOG

ARM = ("core", "truncation", "estimator", "seed", "lr")


def plan(
    networks: Sequence[Any],
    folder: Path,
    arms: Sequence[tuple[int, str]],
    seeds: Sequence[int],
    rates: dict[tuple[str | None, int], float],
) -> list[Run]:
    """A run for each core, arm and seed, seed by seed.

    networks: the options of each core with each estimator.
    arms: pairs of a truncation and an estimator.
    rates: learning rates of arms, by (estimator, truncation), or (None, truncation) for both.

    Raises ValueError for a rate of an arm that is not compared.
    """
    known = {*arms, *((truncation, None) for truncation, _ in arms)}
    for estimator, truncation in rates:
        if (truncation, estimator) not in known:
            arm = f"{truncation}" if estimator is None else f"{estimator}:{truncation}"
            raise ValueError(f"--lrs gives a rate for {arm}, which is not compared")
    own = {(options.core, options.estimator): options for options in networks}
    cores = dict.fromkeys(options.core for options in networks)
    runs = []
    for seed in dict.fromkeys(seeds):
        for core, (truncation, estimator) in product(cores, dict.fromkeys(arms)):
            options = own[core, estimator]
            rate = rates.get((None, truncation), options.lr)
            # Of feed-forward networks there is nothing to truncate.
            given = {} if options.truncation == truncation else {"truncation": truncation}
            made = dataclasses.replace(
                options,
                **given,
                seed=seed,
                lr=rates.get((estimator, truncation), rate),
                quiet=True,
            )
            steps_per_update(made)
            name = f"T{truncation}-{estimator}-seed{seed}"
            name = f"{core}-{name}" if len(cores) > 1 else name
            runs.append(Run(name, made, folder / name))
    return runs


def compare(task: str, runs: Sequence[Run], folder: Path, jobs: int, quiet: bool) -> list[Failure]:
    """Does the runs that are not done, ``jobs`` at once; writes and prints what came out.

    The folder gets results.csv, log.jsonl (the runs' logs in one) and curves.png. Returns the runs
    that failed.

    Raises ValueError, before anything is run, where a run's folder holds another configuration.
    """
    notice = checked(task, runs)
    print(notice)
    failures = run_missing(task, runs, folder, jobs, quiet)
    report(task, runs, folder, notice)
    return failures


def report(task: str, runs: Sequence[Run], folder: Path, notice: str) -> None:
    """Writes results.csv, log.jsonl and curves.png, and prints the table and their paths."""
    figures, unit = TASKS[task].FIGURES, TASKS[task].UNIT
    done = [(run, result) for run in runs if (result := run.result()) is not None]
    if not done:
        return
    paths = [folder / name for name in ("results.csv", LOG, "curves.png")]
    arms = [(run, {name: getattr(run.options, name) for name in ARM}) for run, _ in done]
    write_csv(paths[0], arms, figures)
    write_log(paths[1], arms)
    networks = {described(run.options) for run in runs}
    several = len(networks) > 1
    title = f"{len(networks)} cores" if several else described(runs[0].options)
    curve = shown_figure(task)
    arm = attrgetter("options.core", "options.truncation", "options.estimator")
    ordered = sorted((run for run, _ in done), key=arm)
    plots.learning_curves(
        {"": [curve_of(run, curve.key, several) for run in ordered]},
        paths[2],
        curve.label,
        unit,
        f"{title} on {notice.split(' (')[0]}",
        curve.lower_is_better,
    )
    print(table(done, figures, unit))
    print(notice)
    for path in paths:
        print(path)


def curve_of(run: Run, key: str, named: bool) -> plots.Curve:
    options = run.options
    network = f"{options.core}, {options.truncation}" if named else f"{options.truncation}"
    estimator = NAMES[options.estimator]
    return plots.Curve(
        f"{network} steps, {estimator}",
        network,
        STYLES[options.estimator],
        points(run.folder / LOG, key),
    )


NAMES = {
    "none": "BPTT",
    "zero": "nothing sent back",
    "dni": "DNI",
    "cdni": "cDNI",
    "least-squares": "least squares",
    "bp-lambda": "BP(lambda)",
    "true": "true gradient",
}
STYLES = {
    "none": "--",
    "zero": (0, (1, 3)),
    "dni": "-",
    "cdni": (0, (3, 5, 1, 5)),
    "least-squares": "-.",
    "bp-lambda": (0, (5, 1, 1, 1, 1, 1)),
    "true": ":",
}


def table(done: Sequence[tuple[Run, dict]], figures: Sequence[Figure], unit: str) -> str:
    """A line an arm: its figures, mean and standard deviation over the seeds, and its speed."""
    arms: dict[tuple, list[dict]] = {}
    for run, result in done:
        options = run.options
        key = (options.core, options.truncation, options.estimator, options.lr)
        arms.setdefault(key, []).append(result)
    header = ["core", "steps", "estimator", "rate", "seeds", *(figure.label for figure in figures)]
    header += [f"{unit} seen", "seconds", f"{unit}/s"]
    lines = [header]
    for (core, truncation, estimator, rate), results in sorted(arms.items()):
        found = [figures_of(result) for result in results]
        symbols = fmean(result["symbols"] for result in results)
        seconds = fmean(result["seconds"] for result in results)
        lines.append(
            [
                core,
                str(truncation),
                estimator,
                f"{rate:g}",
                str(len(results)),
                *(spread([one.get(shown.key) for one in found], shown.form) for shown in figures),
                f"{symbols:,.0f}",
                f"{seconds:,.0f}",
                f"{symbols / seconds:,.0f}" if seconds else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    rows.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(rows)


def spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = form.format(fmean(known))
    return mean if len(known) == 1 else f"{mean} ± {form.format(stdev(known))}"
