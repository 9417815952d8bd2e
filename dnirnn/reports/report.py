"""What reproduce writes: the paper's table and ours, at equal data, seconds and updates."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from dnirnn.config.registry import TASKS
from dnirnn.config.saved import described
from dnirnn.groups import OptionGroup, flat, listed
from dnirnn.options import flag
from dnirnn.progress import minutes
from dnirnn.reports import plots
from dnirnn.reports.curves import Point, points
from dnirnn.reports.recipes import Arm, Column, Recipe
from dnirnn.reports.runs import Failure, Run, write_csv, write_log, write_rows, write_whole
from dnirnn.reports.tables import (
    Cell,
    Table,
    Trace,
    baseline,
    baseline_name,
    by_column,
    figure_of,
    tables_of,
    values_of,
)
from dnirnn.training.trainer import LOG

FILES = ("report.md", "table.csv", "results.csv", "log.jsonl", "curves.png")
QUOTED = (
    "*quoted*: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,"
    " its table of recurrent networks; from memory, not checked against the paper. Their settings,"
    " budget and hardware are not ours."
)
FALLING = (
    "With a learning rate that falls along a cosine it is zero at each run's own end: what is read"
    " at equal data or updates favours the runs that are nearest to theirs by then."
)
STYLES = ("--", "-", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))  # of lines, as matplotlib writes them
DECAYS = {"none": "constant learning rate", "cosine": "learning rate falling along a cosine"}


class Planned(NamedTuple):
    """A run, and the column that it is a seed of."""

    column: Column
    run: Run


class Rates(NamedTuple):
    """What a search found: each column's learning rate, and validation bits at all it tried.

    Both by column; empty where nothing was searched.
    """

    found: dict[str, float]
    tried: dict[str, dict[float, float]]


def report(
    recipe: Recipe,
    planned: Sequence[Planned],
    rates: Rates,
    failures: Sequence[Failure],
    folder: Path,
    notice: str,
    command: str,
) -> None:
    """Writes report.md, table.csv, results.csv, log.jsonl and curves.png; prints the first.

    table.csv has the values of the report's tables, results.csv a row for each run that is done,
    log.jsonl the runs' logs in one. A run that failed has its place in the tables, and a mark, as
    far as it came; one that was interrupted has not.
    """
    failed = {failure.run for failure in failures}
    traces = [
        Trace(column, run, curve_of(recipe, run), run.result())
        for column, run in planned
        if run.result() is not None or run.name in failed
    ]
    traces = [trace for trace in traces if trace.curve]
    if not traces:
        return
    done = [trace for trace in traces if trace.result is not None]
    tables = list(tables_of(recipe, traces))
    lines = [
        *introduction(recipe, planned, notice, command),
        *([] if recipe.remarks is None else recipe.remarks(recipe, traces)),
        *(line for table in tables for line in shown(recipe, table)),
        *([QUOTED, ""] if any(map(len, recipe.quoted.values())) else []),
        *summary(recipe, traces, planned),
        *(searched(recipe, rates) if rates.tried else []),
        *([f"† {f.run} failed: {f.reason}" for f in failures]),
    ]
    paths = [folder / name for name in FILES]
    write_whole(paths[0], lambda file: file.write("\n".join(lines).rstrip() + "\n"))
    write_table(paths[1], recipe, tables)
    write_csv(paths[2], [(one.run, arm_of(one)) for one in done], TASKS[recipe.task].FIGURES)
    write_log(paths[3], [(one.run, arm_of(one)) for one in traces])
    draw(recipe, traces, paths[4], notice)
    print("\n".join(lines))
    for path in paths:
        print(path)


def curve_of(recipe: Recipe, run: Run) -> list[Point]:
    log = run.place / LOG
    batch = run.options.batch if recipe.data == "sequences" else None
    return points(log, recipe.figure, batch) if log.exists() else []


def arm_of(trace: Trace) -> dict[str, Any]:
    arm, truncation, decay = trace.column
    seed, rate = trace.run.options.seed, trace.run.options.lr
    return {"arm": arm.name, "truncation": truncation, "decay": decay, "lr": rate, "seed": seed}


# The report


def introduction(
    recipe: Recipe, planned: Sequence[Planned], notice: str, command: str
) -> list[str]:
    runs = [one.run.options for one in planned]
    network = alike(f"{described(options)}, batch {options.batch}" for options in runs)
    limit = alike(map(limits, runs))
    ends = f"{limit}, evaluation and saving not counted" if limit else "what its arm says below"
    seeds = ", ".join(str(seed) for seed in recipe.seeds)
    return [
        f"# {recipe.title}",
        "",
        f"    {command}",
        "",
        f"{notice}. {f'{network}; a' if network else 'A'} run ends after {ends}. Seeds {seeds}:"
        " median, and lowest to highest in brackets.",
        "",
        f"- all: {' '.join(words_of(recipe.options))}",
        *(f"- {arm.label}: {settings(arm)}" for arm in recipe.arms if settings(arm)),
        *([] if recipe.decays == ("none",) else ["", FALLING]),
        "",
    ]


def limits(options: OptionGroup) -> str:
    """What ends a run."""
    budget = {
        "minutes of training": minutes(options),
        "updates": options.updates,
        "symbols": options.symbols,
    }
    found = [f"{value:,g} {unit}" for unit, value in budget.items() if value is not None]
    found += [f"{options.patience} evaluations without a better one"] if options.patience else []
    return " or ".join(found)


def alike(texts: Iterable[str]) -> str:
    """The one text that all are, or nothing."""
    found = set(texts)
    return found.pop() if len(found) == 1 else ""


def words_of(options: OptionGroup) -> list[str]:
    """The flags that give these options: those that differ from the defaults."""
    words: list[str] = []
    values = flat(options)
    for field, default in listed(type(options), options.choices()):
        value = values[field.name]
        if value == default:
            continue
        words.append(flag(field.name))
        if isinstance(value, bool):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words.append(f"{one[0]}={one[1]!r}" if isinstance(one, tuple) else str(one))
    return words


def settings(arm: Arm) -> str:
    """What an arm changes, in the words of the command line."""
    words = []
    for name, value in arm.changes.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [flag(name), *map(str, values)]
    if arm.chunks is not None:
        words.append(f"({'a chunk' if arm.chunks == 1 else f'{arm.chunks} chunks'} an update)")
    return " ".join(words)


def shown(recipe: Recipe, table: Table) -> list[str]:
    """A table in Markdown: arms down, truncations across, the paper's figures below ours."""
    if not table.cells:
        return []
    title = f"## {table.title[0].upper()}{table.title[1:]}"
    title += f" ({DECAYS[table.decay]})" if len(recipe.decays) > 1 else ""
    names = {cell.column.name: cell for cell in table.cells}
    across = [t for t in recipe.truncations if any(c.column.truncation == t for c in table.cells)]
    rows = [["", *(f"T = {truncation}" for truncation in across)]]
    for arm in recipe.arms:
        cells = [names.get(Column(arm, t, table.decay).name) for t in across]
        others = [names.get(baseline(recipe, Column(arm, t, table.decay)).name) for t in across]
        if any(cells):
            texts = [text_of(cell, other, table) for cell, other in zip(cells, others)]
            rows.append([arm.label, *texts])
        theirs = recipe.quoted.get(arm.name, {})
        if table.quoted and any(t in theirs for t in across):
            rows.append([f"{arm.label}, *quoted*", *(theirs.get(t, "") for t in across)])
    limits = {cell.column.truncation: cell.limit for cell in table.cells}
    if table.at in ("data", "seconds", "updates"):
        word = recipe.data if table.at == "data" else table.at
        rows.append([f"read at, {word}", *(f"{limits[t]:,.0f}" for t in across)])
    elif table.at != "end":
        form = figure_of(recipe, recipe.figure).form
        rows.append(["that is, at", *(number(limits[t], form) for t in across)])
    lines = [title, "", *markdown(rows), ""]
    if recipe.baseline.name in (arm.name for arm in recipe.arms):
        against = "how many times" if table.times else "how much more or less than"
        lines += [f"After the comma: {against} {baseline_name(recipe)}.", ""]
    return lines


def text_of(cell: Cell | None, baseline: Cell | None, table: Table) -> str:
    """A cell in words: its seeds, and how it stands to the baseline."""
    if cell is None or not cell.values:
        return "" if cell is None else "-" + "†" * cell.failed
    text = spread(cell.values, table.figure.form) + "†" * cell.failed
    if baseline is None or baseline is cell or not baseline.values:
        return text
    own, other = median(cell.values), median(baseline.values)
    if not table.times:
        return f"{text}, {own - other:+.3f}"
    return f"{text}, {own / other:.2f} ×" if other and math.isfinite(own + other) else text


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the lowest and the highest where they differ."""
    middle, low, high = (number(v, form) for v in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def number(value: float, form: str) -> str:
    return form.format(value).removesuffix(".0") if math.isfinite(value) else "never"


def summary(recipe: Recipe, traces: Sequence[Trace], planned: Sequence[Planned]) -> list[str]:
    """A line a column: its learning rate, its figures at the end, what it spent."""
    figures = TASKS[recipe.task].FIGURES
    header = ["", "rate", "seeds", *(one.label for one in figures), recipe.data, "updates"]
    rows = [[*header, "seconds", f"{recipe.data}/s", "ended by"]]
    for column, seeds in by_column(traces):
        asked = sum(one.column.name == column.name for one in planned)
        done = [trace for trace in seeds if trace.result is not None]
        ends = [trace.curve[-1] for trace in seeds]
        found = [values_of(seeds, one.key) for one in figures]
        speeds = [end.data / end.seconds for end in ends if end.seconds]
        rows.append(
            [
                named(recipe, column),
                f"{seeds[0].run.options.lr:g}",
                f"{len(done)} of {asked}" if len(done) < asked else f"{asked}",
                *(spread(v, one.form) if v else "none" for one, v in zip(figures, found)),
                spread([end.data for end in ends], "{:,.0f}"),
                spread([end.updates for end in ends], "{:,.0f}"),
                spread([end.seconds for end in ends], "{:,.0f}"),
                spread(speeds, "{:,.0f}") if speeds else "",
                ", ".join(dict.fromkeys(t.result["stopped"] if t.result else "†" for t in seeds)),
            ]
        )
    return ["## The runs", "", *markdown(rows), ""]


def named(recipe: Recipe, column: Column) -> str:
    decay = f", {column.decay}" if len(recipe.decays) > 1 and column.decay != "none" else ""
    return f"{column.arm.label}, T = {column.truncation}{decay}"


def searched(recipe: Recipe, rates: Rates) -> list[str]:
    """The search for learning rates: validation bits at each, the best one marked."""
    tried = sorted({rate for bits in rates.tried.values() for rate in bits})
    rows = [["", *(f"{rate:g}" for rate in tried)]]
    for name, bits in rates.tried.items():
        texts = ["" if r not in bits else number(bits[r], "{:.4f}") for r in tried]
        best = rates.found[name]
        texts = [f"**{text}**" if r == best else text for r, text in zip(tried, texts)]
        rows.append([name, *texts])
    title = "## The search for learning rates: validation after"
    return [f"{title} {recipe.search.minutes:g} minutes of training", "", *markdown(rows), ""]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, its columns as wide as they need be."""
    widths = [max(3, *map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return lines


# The files beside it


def write_table(path: Path, recipe: Recipe, tables: Sequence[Table]) -> None:
    """A row a cell: what its table is of, where it was read, its seeds, what the paper has."""

    def row(table: Table, cell: Cell) -> dict:
        theirs = recipe.quoted.get(cell.column.arm.name, {}) if table.quoted else {}
        return {
            "figure": table.figure.key,
            "at": table.at,
            "limit": cell.limit,
            "decay": table.decay,
            "arm": cell.column.arm.name,
            "truncation": cell.column.truncation,
            "median": median(cell.values) if cell.values else None,
            "lowest": min(cell.values, default=None),
            "highest": max(cell.values, default=None),
            "seeds": len(cell.values),
            "failed": cell.failed,
            "quoted": theirs.get(cell.column.truncation),
        }

    write_rows(path, [row(table, cell) for table in tables for cell in table.cells])


def draw(recipe: Recipe, traces: Sequence[Trace], path: Path, notice: str) -> None:
    """Curves: a row for each group that is measured together, or for each decay."""
    shown = figure_of(recipe, recipe.figure)
    # There are more colours than styles.
    arms, truncations = [arm.name for arm in recipe.arms], list(recipe.truncations)
    by_arm = len(arms) <= len(STYLES)
    rows: dict[str, list[plots.Curve]] = {}
    for trace in traces:
        arm, truncation, decay = trace.column
        if recipe.against is None:
            style = "--" if arm.name == recipe.baseline.name else "-"
            curve = plots.Curve(arm.label, arm.label, style, trace.curve)
            rows.setdefault(f"T = {truncation}", []).append(curve)
        else:
            name = f"{arm.label} {truncation}"
            place = arms.index(arm.name) if by_arm else truncations.index(truncation)
            colour = str(truncation) if by_arm else arm.label
            curve = plots.Curve(name, colour, STYLES[place % len(STYLES)], trace.curve)
            rows.setdefault(DECAYS[decay], []).append(curve)
    title = f"{recipe.title}; {notice.split(' (')[0]}"
    plots.learning_curves(rows, path, shown.label, recipe.data, title, shown.lower_is_better)
