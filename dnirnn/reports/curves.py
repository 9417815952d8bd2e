"""A run's evaluations as a curve, and curves compared at equal data, seconds and updates."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dnirnn.training.log import read_log


class Point(NamedTuple):
    """One evaluation. data: symbols or sequences trained on; value: what was measured."""

    data: float
    seconds: float
    updates: float
    value: float


def points(log: Path, key: str, sequences_at_once: int | None = None) -> list[Point]:
    """The evaluations that a log has of ``key``, in order.

    sequences_at_once: where data are to be counted in sequences: a batch's. None: in symbols.
    """

    def data(row: dict) -> float:
        return row["symbols"] if sequences_at_once is None else row["epochs"] * sequences_at_once

    rows = read_log(log, "valid")
    return [Point(data(row), row["seconds"], row["update"], row[key]) for row in rows]


def reading(
    curve: Sequence[Point], coordinate: str, limit: float, lower_is_better: bool
) -> float | None:
    """The best value at most ``limit`` along: what a run knew by then. None: nothing yet.

    coordinate: "data", "seconds" or "updates".
    """
    values = [point.value for point in curve if getattr(point, coordinate) <= limit]
    best = min if lower_is_better else max
    return best(values, default=None)


def spent(
    curve: Sequence[Point], coordinate: str, value: float, lower_is_better: bool
) -> float | None:
    """How far along a run first was as good as ``value``; None: never."""
    for point in curve:
        if point.value <= value if lower_is_better else point.value >= value:
            return getattr(point, coordinate)
    return None
