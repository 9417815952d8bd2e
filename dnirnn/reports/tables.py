"""The figures of a report's tables: what each column came to, at equal data, seconds and updates."""

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from dnirnn.config.registry import TASKS
from dnirnn.config.task import Figure, figures_of
from dnirnn.reports.curves import Point, reading, spent
from dnirnn.reports.recipes import Column, Recipe
from dnirnn.reports.runs import Run

ENDS = {"seconds": "minutes", "data": "symbols", "updates": "updates"}  # the budget of an axis


class Trace(NamedTuple):
    """What is known of a run. result: None where it failed on the way."""

    column: Column
    run: Run
    curve: list[Point]
    result: dict | None


class Cell(NamedTuple):
    """A column's figure, a value a seed. limit: where it was read; None: at the end."""

    column: Column
    limit: float | None
    values: list[float]
    failed: bool


class Table(NamedTuple):
    """Cells of one figure and one decay of the learning rate.

    at: what was equal, or what is counted. times: compared by a ratio, else by a difference.
    quoted: whether the paper has this figure.
    """

    title: str
    at: str
    decay: str
    figure: Figure
    cells: list[Cell]
    times: bool
    quoted: bool


def figure_of(recipe: Recipe, key: str) -> Figure:
    return next(figure for figure in TASKS[recipe.task].FIGURES if figure.key == key)


def tables_of(recipe: Recipe, traces: Sequence[Trace]) -> Iterator[Table]:
    on_the_way = figure_of(recipe, recipe.figure)
    times = not on_the_way.lower_is_better
    axes = {"seconds": "seconds", "data": recipe.data, "updates": "updates"}
    for decay in recipe.decays:
        own = [trace for trace in traces if trace.column.decay == decay]
        if not own:
            continue
        if recipe.tested is not None:
            tested = figure_of(recipe, recipe.tested)
            cells = [
                Cell(column, None, values_of(seeds, tested.key), failed(seeds))
                for column, seeds in by_column(own)
            ]
            title = f"{tested.label}, best model on validation"
            yield Table(title, "end", decay, tested, cells, times, True)
        for axis, word in axes.items():
            cells = read_along(recipe, own, axis, on_the_way.lower_is_better)
            title = f"{on_the_way.label}, after equal {word}"
            yield Table(title, axis, decay, on_the_way, cells, times, recipe.tested is None)
        for axis in ("data", "seconds"):
            cost = Figure(recipe.figure, axes[axis], "{:,.0f}", True)
            cells = costs(recipe, own, axis, on_the_way.lower_is_better)
            title = f"{axes[axis]} until as good as {baseline_name(recipe)} after equal seconds"
            yield Table(title, f"{axis} spent", decay, cost, cells, True, False)


def values_of(seeds: Sequence[Trace], key: str) -> list[float]:
    """A figure at the end of those runs that came to it."""
    found = [figures_of(trace.result).get(key) for trace in seeds if trace.result is not None]
    return [value for value in found if value is not None]


def failed(seeds: Sequence[Trace]) -> bool:
    return any(trace.result is None for trace in seeds)


def by_column(traces: Sequence[Trace]) -> list[tuple[Column, list[Trace]]]:
    """The seeds of each column."""
    names = dict.fromkeys(trace.column.name for trace in traces)
    seeds = [[trace for trace in traces if trace.column.name == name] for name in names]
    return [(one[0].column, one) for one in seeds]


def together(recipe: Recipe, traces: Sequence[Trace]) -> list[list[Trace]]:
    """The traces that are measured against each other: all, or those of each truncation."""
    if recipe.against is not None:
        return [list(traces)]
    truncations = dict.fromkeys(trace.column.truncation for trace in traces)
    return [[t for t in traces if t.column.truncation == one] for one in truncations]


def limits_of(group: Sequence[Trace], axis: str) -> tuple[float, float]:
    """How far all of them came, but for those that ended before their budget did.

    And how far they are read, which is the same but where it was this budget that ended them all:
    their last updates went beyond it, each by another bit, and that counts as equal.
    """
    whole = [t for t in group if t.result and t.result["stopped"] != "patience"]
    ended_here = whole and all(t.result["stopped"] == ENDS[axis] for t in whole)
    ends = [getattr(trace.curve[-1], axis) for trace in whole or group]
    return min(ends), max(ends) if ended_here else min(ends)


def read_along(recipe: Recipe, traces: Sequence[Trace], axis: str, lower: bool) -> list[Cell]:
    """The best values by the time that all that is measured together came to."""
    return [
        Cell(column, limit, [value for value in values if value is not None], failed(seeds))
        for group in together(recipe, traces)
        for limit, furthest in [limits_of(group, axis)]
        for column, seeds in by_column(group)
        for values in [[reading(trace.curve, axis, furthest, lower) for trace in seeds]]
    ]


def costs(recipe: Recipe, traces: Sequence[Trace], axis: str, lower: bool) -> list[Cell]:
    """How far along each came to the baseline's figure at equal seconds; infinite: never."""
    known = {cell.column.name: cell for cell in read_along(recipe, traces, "seconds", lower)}
    cells = []
    for column, seeds in by_column(traces):
        goal = known.get(baseline(recipe, column).name)
        if goal is not None and goal.values:
            mark = median(goal.values)
            found = [spent(trace.curve, axis, mark, lower) for trace in seeds]
            values = [math.inf if value is None else value for value in found]
            cells.append(Cell(column, mark, values, failed(seeds)))
    return cells


def baseline(recipe: Recipe, column: Column) -> Column:
    """The column that a column is measured against."""
    truncation = column.truncation if recipe.against is None else recipe.against
    return Column(recipe.baseline, truncation, column.decay)


def baseline_name(recipe: Recipe) -> str:
    return f"{recipe.baseline.label} {recipe.against or 'of the same truncation'}"
