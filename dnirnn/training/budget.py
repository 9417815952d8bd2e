"""Budget: what ends a run, and how much of it is used."""

from dnirnn.training.state import Progress


class Budget:
    """Updates, symbols, minutes of training; and patience, in evaluations without a better one.

    None: no bound.
    """

    def __init__(
        self,
        updates: int | None = None,
        symbols: int | None = None,
        minutes: float | None = None,
        patience: int | None = None,
    ):
        self.updates, self.symbols, self.minutes = updates, symbols, minutes
        self.patience = patience

    def used(self, progress: Progress) -> dict[str, float]:
        """The fraction that is used of each budget that was given, in this order; patience is none."""
        spent = {
            "updates": (progress.update, self.updates),
            "symbols": (progress.symbols, self.symbols),
            "minutes": (progress.seconds / 60, self.minutes),
        }
        return {name: used / budget for name, (used, budget) in spent.items() if budget is not None}

    def reached(self, progress: Progress) -> str | None:
        """The first budget that is used up, or "patience"."""
        for name, used in self.used(progress).items():
            if used >= 1:
                return name
        patient = self.patience is None or progress.evaluations_since_best < self.patience
        return None if patient else "patience"


def is_due(every: int | None, update: int) -> bool:
    return every is not None and update % every == 0
