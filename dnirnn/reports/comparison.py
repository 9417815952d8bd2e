"""What a comparison came to: its runs' options that differ, their figures and curves."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from dnirnn.config.registry import TASKS
from dnirnn.config.saved import described, from_config
from dnirnn.config.task import Figure, figures_of
from dnirnn.groups import every_option, flat
from dnirnn.reports import plots
from dnirnn.reports.curves import points
from dnirnn.reports.runs import Run, shown_figure, write_csv, write_log
from dnirnn.training.trainer import CONFIG, LOG, RESULT, read_config

ARM = ("core", "truncation", "estimator", "seed", "lr")
STYLES = ("--", "-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 5, 1, 5)), (0, (1, 3)))


def word_of(value: Any) -> str:
    """A value as --vary and tables have it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(word_of, value)) or "-"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def others_in(folder: Path, task: str, runs: Sequence[Run]) -> list[Run]:
    """The runs of the task in a folder that are done, beside these."""
    found = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        if path.parent in [run.folder for run in runs] or not (path.parent / CONFIG).exists():
            continue
        config = read_config(path.parent)
        if config.get("task") != task:
            continue
        try:
            options = from_config(TASKS[task].Options, config)
            found.append(Run(path.parent.name, options, path.parent, kept=True))
        except ValueError as error:
            warnings.warn(f"{path.parent} is not in the table: {error}", stacklevel=2)
    return found


class Compared(NamedTuple):
    """A run that is done: its result, and its options as words, those that differ first of all."""

    run: Run
    result: dict
    arm: dict[str, Any]


def report(task: str, runs: Sequence[Run], folder: Path, notice: str) -> None:
    """Writes results.csv, log.jsonl and curves.png, and prints the table and their paths."""
    figures, unit = TASKS[task].FIGURES, TASKS[task].UNIT
    done = with_arms([(run, result) for run in runs if (result := run.result()) is not None])
    if not done:
        return
    paths = [folder / name for name in ("results.csv", LOG, "curves.png")]
    arms = [(one.run, one.arm) for one in done]
    write_csv(paths[0], arms, figures)
    write_log(paths[1], arms)
    networks = {described(one.run.options) for one in done}
    title = f"{len(networks)} cores" if len(networks) > 1 else networks.pop()
    curve = shown_figure(task)
    plots.learning_curves(
        {"": curves_of(done, curve.key)},
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


def with_arms(done: Sequence[tuple[Run, dict]]) -> list[Compared]:
    """Runs with the options that tell them apart: those of ARM, and whatever else differs."""
    values = [flat(run.options) for run, _ in done]
    known = every_option(type(done[0][0].options)) if done else {}
    other = [
        name
        for name in known
        if name not in (*ARM, "training")
        and known[name][0].metadata["identity"]
        and len({value.get(name) for value in values if name in value}) > 1
    ]
    found = []
    for (run, result), value in zip(done, values):
        own = {name: value[name] if name in value else getattr(run.options, name, "-") for name in ARM}
        more = {name: word_of(value[name]) if name in value else "-" for name in other}
        found.append(Compared(run, result, {**own, **more}))
    return found


def curves_of(done: Sequence[Compared], key: str) -> list[plots.Curve]:
    """A line a run: its style is the estimator's, its colour that of all the rest but the seed."""
    styles = dict.fromkeys(one.arm["estimator"] for one in done)
    styles = {name: STYLES[i % len(STYLES)] for i, name in enumerate(styles)}
    several = len({one.arm["core"] for one in done}) > 1
    curves = []
    for one in sorted(done, key=lambda one: order(one.arm)):
        core, truncation, estimator, *_ = one.arm.values()
        network = f"{core}, {truncation}" if several else f"{truncation}"
        more = [f"{name.replace('_', ' ')} {value}" for name, value in list(one.arm.items())[len(ARM) :]]
        label = getattr(getattr(one.run.options, "estimator", None), "label", "") or estimator
        name = ", ".join([f"{network} steps", label, *more])
        colour = ", ".join([network, *more])
        curve = points(one.run.place / LOG, key)
        curves.append(plots.Curve(name, colour, styles[estimator], curve))
    return curves


def order(arm: Mapping[str, Any]) -> tuple:
    """By core, truncation (the word auto last), estimator, then what else differs."""
    truncation = (isinstance(arm["truncation"], str), arm["truncation"])
    return (arm["core"], truncation, arm["estimator"], arm["lr"], *map(str, list(arm.values())[5:]))


def table(done: Sequence[Compared], figures: Sequence[Figure], unit: str) -> str:
    """A line an arm: its figures, mean and standard deviation over the seeds, and its speed."""
    arms: dict[tuple, list[dict]] = {}
    for one in sorted(done, key=lambda one: order(one.arm)):
        key = tuple(value for name, value in one.arm.items() if name != "seed")
        arms.setdefault(key, []).append(one.result)
    more = [name.replace("_", " ") for name in list(done[0].arm)[len(ARM) :]]
    header = ["core", "steps", "estimator", "rate", *more, "seeds", *(one.label for one in figures)]
    lines = [[*header, f"{unit} seen", "seconds", f"{unit}/s"]]
    for key, results in arms.items():
        found = [figures_of(result) for result in results]
        symbols = fmean(result["symbols"] for result in results)
        seconds = fmean(result["seconds"] for result in results)
        lines.append(
            [
                *map(word_of, key),
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
