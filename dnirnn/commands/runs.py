"""runs, table and plot: whatever runs there are, whoever made them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dnirnn.commands.shared import OK
from dnirnn.config.registry import TASKS
from dnirnn.config.saved import from_config
from dnirnn.config.task import Figure, figures_of
from dnirnn.groups import every_option, flat
from dnirnn.reports import plots
from dnirnn.reports.curves import points
from dnirnn.training.log import read_log
from dnirnn.training.trainer import CONFIG, LOG, RESULT, read_config, read_json

LINES = ("-", "--", "-.", ":")


def add_places(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    parent.add_argument(
        "places",
        type=Path,
        nargs="*",
        default=[Path("runs")],
        metavar="FOLDER",
        help="run folders, or folders that hold some (default: runs)",
    )


def add_plot(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_places(parent, words)
    parent.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="the picture (default: curves.png)",
    )
    parent.add_argument(
        "--metric", metavar="NAME", help="of the log's evaluations (default: the task's first)"
    )


def run_runs(arguments: argparse.Namespace) -> int:
    list_runs(arguments.places)
    return OK


def run_table(arguments: argparse.Namespace) -> int:
    table(arguments.places)
    return OK


def run_plot(arguments: argparse.Namespace) -> int:
    plot(arguments.places, arguments.out, arguments.metric)
    return OK


class Known(NamedTuple):
    """A run folder's configuration, and how far it got."""

    folder: Path
    config: dict
    state: str
    figures: dict[str, float]
    symbols: float
    seconds: float


def known(folder: Path) -> Known:
    """Raises ValueError for a folder that is no run of a task that is installed."""
    config = read_config(folder)
    if config.get("task") not in list(TASKS):
        raise ValueError(f"{folder} is not a run of {' or '.join(TASKS)}")
    result = read_json(folder / RESULT)
    if result is not None:
        spent = result["symbols"], result["seconds"]
        return Known(folder, config, result["stopped"], figures_of(result), *spent)
    rows = read_log(folder / LOG) if (folder / LOG).exists() else []
    evaluations = [row for row in rows if row["kind"] == "valid"]
    last = rows[-1] if rows else {}
    figures = min(evaluations, key=lambda row: row["bits"], default={})
    return Known(folder, config, "unfinished", figures, last.get("symbols", 0), last.get("seconds", 0))


def found(places: Sequence[Path]) -> list[Known]:
    """The runs in the folders given, each a run folder or one that holds some, at any depth.

    Raises ValueError for a folder that is and holds none.
    """
    runs = []
    for place in places:
        here = sorted(path.parent for path in place.rglob(CONFIG)) if place.is_dir() else []
        if not here:
            raise ValueError(f"{place} holds no run: there is no {CONFIG} in it or below")
        runs += here
    return [known(folder) for folder in dict.fromkeys(runs)]


def of_one_task(runs: Sequence[Known]) -> ModuleType:
    tasks = dict.fromkeys(run.config["task"] for run in runs)
    if len(tasks) > 1:
        raise ValueError(f"runs must be of one task to stand side by side; got {', '.join(tasks)}")
    return TASKS[next(iter(tasks))]


def differing(runs: Sequence[Known]) -> dict[str, list[str]]:
    """The options that the runs do not share, and each run's value, "-" where it has none such."""
    kind = TASKS[runs[0].config["task"]].Options
    values = [flat(from_config(kind, run.config)) for run in runs]
    known = every_option(kind)
    columns = {
        name: [shown(one.get(name)) for one in values]
        for name in dict.fromkeys(name for one in values for name in one)
        if name not in known or known[name][0].metadata["identity"]
    }
    return {name: column for name, column in columns.items() if len(set(column)) > 1}


def shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value)) or "-"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def lined(lines: Sequence[Sequence[str]]) -> str:
    """A table of words; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    return "\n".join([rows[0], "  ".join("-" * width for width in widths), *rows[1:]])


def list_runs(places: Sequence[Path]) -> None:
    """Prints a line a run: its folder, its task, and how far it got."""
    lines = [("run", "task", "symbols", "seconds", "stopped by")]
    for run in found(places):
        spent = f"{run.symbols:,.0f}", f"{run.seconds:,.0f}"
        lines.append((str(run.folder), run.config["task"], *spent, run.state))
    print(lined(lines))


def table(places: Sequence[Path]) -> None:
    """Prints a line a run: the options that differ, and the figures of its best model.

    Raises ValueError for runs of several tasks.
    """
    runs = found(places)
    task = of_one_task(runs)
    options = differing(runs)
    figures: Sequence[Figure] = task.FIGURES
    lines = [["run", *options, *(one.label for one in figures), f"{task.UNIT} seen", "seconds"]]
    for i, run in enumerate(runs):
        values = [run.figures.get(one.key) for one in figures]
        cells = ["-" if v is None else one.form.format(v) for v, one in zip(values, figures)]
        spent = f"{run.symbols:,.0f}", f"{run.seconds:,.0f}"
        unfinished = " (unfinished)" if run.state == "unfinished" else ""
        name = run.folder.name + unfinished
        lines.append([name, *(values[i] for values in options.values()), *cells, *spent])
    print(lined(lines))
    print("Figures are of each run's best model on validation; seconds are of training.")


def plot(places: Sequence[Path], out: Path, key: str | None = None) -> None:
    """Draws the runs' learning curves, a line for each set of options, its seeds in a band.

    key: the metric of the log's evaluations; None: the task's own first.

    Raises ValueError for runs of several tasks, and for a metric that a log has not.
    """
    runs = found(places)
    task = of_one_task(runs)
    figures = {one.key: one for one in task.FIGURES if not one.key.startswith("test_")}
    figure = next(iter(figures.values())) if key is None else figures.get(key)
    if figure is None:
        raise ValueError(f"--metric must be one of {', '.join(figures)}; got {key!r}")
    names = named(runs)
    looks = {name: LINES[i % len(LINES)] for i, name in enumerate(dict.fromkeys(names))}
    curves = [
        plots.Curve(name, name, looks[name], points(run.folder / LOG, figure.key))
        for run, name in zip(runs, names)
    ]
    title = f"{len(runs)} runs of {runs[0].config['task']}"
    plots.learning_curves(
        {"": curves}, out, figure.label, task.UNIT, title, figure.lower_is_better
    )
    print(out)


def named(runs: Sequence[Known]) -> list[str]:
    """Each run by the options that it does not share, seeds aside; by its folder where by none."""
    options = {name: values for name, values in differing(runs).items() if name != "seed"}
    if not options:
        return [run.folder.name for run in runs]
    words = [name.replace("_", " ") for name in options]
    rows = zip(*options.values())
    return [", ".join(f"{word} {value}" for word, value in zip(words, row)) for row in rows]
