"""Learning curves as a picture: against data on the left, against time on the right."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from dnirnn.reports.curves import Point

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^v"  # at a line's end: where there are more lines than colours


class Curve(NamedTuple):
    """One run's evaluations; curves of one name are seeds of one line.

    colour: lines that share it have one colour. style: a line's, as matplotlib writes it.
    """

    name: str
    colour: str
    style: str | tuple
    points: list[Point]


def learning_curves(
    rows: dict[str, Sequence[Curve]],
    path: str | Path,
    label: str,
    unit: str,
    title: str,
    lower: bool = True,
) -> None:
    """Writes a PNG: in each row the value against data trained on, and against seconds.

    A line is the mean over its seeds, in a band from the lowest to the highest seed.

    rows: the curves of each row, by what the row is called, "" for nothing. label: names the value.
    unit: names the data. lower: whether a lower value is better.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict.fromkeys(curve.colour for curves in rows.values() for curve in curves)
    looks = {
        colour: (COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)])
        for i, colour in enumerate(colours)
    }
    size = (11, 0.6 + 4 * len(rows))
    figure, grid = plt.subplots(len(rows), 2, figsize=size, squeeze=False, layout="constrained")
    legend = {}
    for axes, (name, curves) in zip(grid, rows.items()):
        for axis in axes:
            axis.sharey(axes[0])
        draw_row(axes, curves, looks, lower)
        axes[0].set_ylabel(f"{name}\n{label}" if name else label)
        for axis, coordinate in zip(axes, (f"{unit} seen", "seconds of training")):
            axis.set_xlabel(coordinate)
        handles, labels = axes[1].get_legend_handles_labels()
        legend |= {label: handle for label, handle in zip(labels, handles)}
    if legend:
        figure.legend(legend.values(), legend, loc="outside right upper", frameon=False)
    figure.suptitle(title)
    # Written beside and renamed, so that a viewer never sees half a picture.
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=140, format="png")
    partial.replace(path)
    plt.close(figure)


def draw_row(axes, curves: Sequence[Curve], looks: dict, lower: bool) -> None:
    from matplotlib.ticker import EngFormatter

    lines = defaultdict(list)
    for curve in curves:
        if curve.points:
            lines[curve.name, curve.colour, curve.style].append(curve.points)
    for (name, colour, style), seeds in lines.items():
        shown, marker = looks[colour]
        # Seeds may stop at different evaluations: the mean ends with the shortest.
        rows = list(zip(*seeds))
        values = [[point.value for point in row] for row in rows]
        for axis, coordinate in zip(axes, ("data", "seconds")):
            x = [fmean(getattr(point, coordinate) for point in row) for row in rows]
            axis.plot(
                x,
                [fmean(row) for row in values],
                linestyle=style,
                color=shown,
                linewidth=1.8,
                marker=marker,
                markevery=[-1],
                markersize=4,
                label=name,
                solid_capstyle="round",
            )
            if len(seeds) > 1:
                low, high = [min(row) for row in values], [max(row) for row in values]
                axis.fill_between(x, low, high, color=shown, alpha=0.15, linewidth=0)
    limits(axes[0], [[p.value for p in curve.points] for curve in curves if curve.points], lower)
    axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in axes:
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].tick_params(labelleft=True)


def limits(axis, curves: list[list[float]], lower: bool) -> None:
    """Keeps the steep start of training from squeezing the part where curves differ."""
    values = [value for curve in curves for value in curve]
    if not lower or not values:
        axis.set_ylim(bottom=0)
        return
    best, worst_end = min(values), max(min(curve) for curve in curves)
    top = worst_end + max(1.5 * (worst_end - best), 0.25)
    if top < max(values):
        axis.set_ylim(best - 0.05 * (top - best), top)
