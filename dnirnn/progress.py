"""How far runs are: a bar on the screen, and how much of a budget is used."""

import sys
from typing import Any

from tqdm import tqdm


def fraction(options: Any, done: dict) -> float:
    """How much of the nearest budget is used, 0 to 1. done: a row of a log, or a result."""
    parts = [
        (options.updates, done.get("update", 0)),
        (options.symbols, done.get("symbols", 0)),
        (minutes(options), done.get("seconds", 0) / 60),
    ]
    shares = [used / budget for budget, used in parts if budget is not None]
    return min(1.0, max(shares, default=0.0))


def minutes(options: Any) -> float | None:
    """The time budget in minutes: ten where nothing else ends the run."""
    others = (options.minutes, options.updates, options.symbols, options.patience)
    return 10.0 if all(limit is None for limit in others) else options.minutes


def bar(quiet: bool, description: str = "") -> tqdm:
    """A bar from 0 to 1 on stderr; now and then a line where stderr is not a terminal."""
    return tqdm(
        total=1.0,
        desc=description,
        disable=quiet,
        mininterval=0.2 if sys.stderr.isatty() else 20,
        miniters=0,
        bar_format="{desc}{percentage:3.0f}% |{bar}| {elapsed} [{remaining} left]{postfix}",
        dynamic_ncols=True,
    )


def move(progress: tqdm, share: float) -> None:
    progress.update(min(share, 1.0) - progress.n)


class RunProgress:
    """What a training run shows as it goes: given every row of its log."""

    def __init__(self, options: Any):
        self.options = options
        self.bar: tqdm | None = None

    def __call__(self, row: dict) -> None:
        if self.bar is None:  # not before there is something to show: errors come first
            self.bar = bar(self.options.quiet)
            # A resumed run starts part of the way: what is left is estimated from there.
            self.bar.initial = self.bar.n = fraction(self.options, row)
        if row["kind"] == "valid" and not self.options.quiet:
            others = {k: v for k, v in row.items() if k not in KNOWN}
            extra = "".join(f", {name} {value:.5g}" for name, value in others.items())
            self.bar.write(
                f"{row['symbols']:>13,} symbols, {row['seconds']:>7,.0f} s:"
                f" validation {row['bits']:.4f} bits{extra}"
            )
        if row["kind"] == "train":
            self.bar.set_postfix_str(f"train {row['bits']:.3f} bits", refresh=False)
        move(self.bar, fraction(self.options, row))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


KNOWN = ("kind", "update", "symbols", "bits", "seconds", "epochs")
