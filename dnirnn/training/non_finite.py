"""What is not finite: what it is called, and the exception that stops a run with it."""

import math
from pathlib import Path

from dnirnn.training.state import Progress

# What of an update's row can be not finite, and what it is called; the first that is, is named.
NAMES = {
    "nats": "loss",
    "gradient_norm": "core gradient",
    "estimator_norm": "estimator gradient",
}


class NonFinite(Exception):
    """A loss or a gradient was not finite: nothing was updated, the last good state was saved.

    update: the update that was not made; what: "loss", "core gradient", "estimator gradient" or
    "validation bits".
    """

    def __init__(self, message: str, update: int, what: str):
        super().__init__(message)
        self.update, self.what = update, what


def first_not_finite(figures: dict[str, float]) -> str | None:
    """The first of an update's figures (see Updater) that is not finite, and so forbade it."""
    return next((name for name in NAMES if not math.isfinite(figures[name])), None)


def in_update(name: str, value: float, steps: int, progress: Progress, saved: Path) -> NonFinite:
    """For the update after ``progress``, whose batch has so many steps, with ``name`` of its row."""
    what, update = NAMES[name], progress.update + 1
    return NonFinite(
        f"update {update}: the {what} is {value}, in the window of {steps} steps from step"
        f" {progress.t} of the sequence, after {progress.symbols:,} symbols; the last good state is"
        f" in {saved}",
        update,
        what,
    )


def in_evaluation(bits: float, progress: Progress, saved: Path) -> NonFinite:
    """For the bits of an evaluation. saved: the last checkpoint before it."""
    return NonFinite(
        f"update {progress.update}: the validation bits are {bits}, after {progress.symbols:,}"
        f" symbols; the last state saved before is in {saved}",
        progress.update,
        "validation bits",
    )
