"""Learning curves as a picture: one panel against data, one against time."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

STYLES = {"none": "--", "dni": "-"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^v"  # at a line's end: where there are more lines than colours


class Point(NamedTuple):
    symbols: float
    seconds: float
    value: float


class Curve(NamedTuple):
    """One run's evaluations; curves alike in all but their points are seeds of one arm.

    core: "" where all are of one.
    """

    truncation: int
    estimator: str
    points: list[Point]
    core: str = ""


def learning_curves(
    curves: Sequence[Curve], path: str | Path, label: str, unit: str, title: str, lower: bool = True
) -> None:
    """Writes a PNG of two panels: the value against symbols trained on, and against seconds.

    One line an arm: the colour is the core and the truncation, dashed without and solid with
    synthetic gradients; the mean over the seeds, in a band from the lowest to the highest seed.

    label: names the value. unit: names the symbols. lower: whether a lower value is better.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    arms = defaultdict(list)
    for curve in curves:
        if curve.points:
            arms[curve.core, curve.truncation, curve.estimator].append(curve.points)
    networks = sorted({(core, truncation) for core, truncation, _ in arms})
    looks = {
        network: (COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)])
        for i, network in enumerate(networks)
    }

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for (core, truncation, estimator), seeds in sorted(arms.items()):
        colour, marker = looks[core, truncation]
        name = f"{core}, {truncation}" if core else f"{truncation}"
        # Seeds may stop at different evaluations: the mean ends with the shortest.
        rows = list(zip(*seeds))
        values = [[point.value for point in row] for row in rows]
        means = [fmean(row) for row in values]
        for axis, coordinate in zip(axes, ("symbols", "seconds")):
            x = [fmean(getattr(point, coordinate) for point in row) for row in rows]
            axis.plot(
                x,
                means,
                STYLES.get(estimator, ":"),
                color=colour,
                linewidth=1.8,
                marker=marker,
                markevery=[-1],
                markersize=4,
                label=f"{name} steps, {NAMES.get(estimator, estimator)}",
                solid_capstyle="round",
            )
            if len(seeds) > 1:
                low, high = [min(row) for row in values], [max(row) for row in values]
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    limits(axes[0], [[p.value for p in curve.points] for curve in curves if curve.points], lower)
    axes[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis, name in zip(axes, (f"{unit} seen", "seconds of training")):
        axis.set_xlabel(name)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(label)
    axes[1].tick_params(labelleft=True)
    if arms:
        handles, labels = axes[1].get_legend_handles_labels()
        figure.legend(handles, labels, title="truncation", loc="outside right upper", frameon=False)
    figure.suptitle(title)
    # Written beside and renamed, so that a viewer never sees half a picture.
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=140, format="png")
    partial.replace(path)
    plt.close(figure)


NAMES = {"none": "BPTT", "dni": "DNI", "true": "true gradient"}


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
