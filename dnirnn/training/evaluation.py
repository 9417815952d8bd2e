"""Evaluation: what a run measures on the way, and the rows of its log."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dnirnn.model import SequenceModel
from dnirnn.training.log import Log
from dnirnn.training.state import PENDING, TrainingState, bits_of, get_rng, set_rng

Measure = Callable[[SequenceModel], dict[str, float]]


class Evaluation:
    """Measures the model of a run, and writes what was found, and the means of training, to its log.

    evaluate: called with the model, in eval mode and without gradients, or None (see Trainer).
    others: likewise, by the kind of the log's row for what they find.
    """

    def __init__(
        self,
        training: TrainingState,
        evaluate: Measure | None,
        others: Mapping[str, Measure | None],
    ):
        self.training, self.evaluate, self.others = training, evaluate, others

    def begin(self, log: Log | None, report: Callable[[dict], None] | None) -> None:
        """Rows go to ``log`` from here on, and to ``report``; nowhere where there is none."""
        self.log, self.report = log, report or (lambda row: None)

    def write(self, kind: str, **fields: Any) -> None:
        """Writes a row."""
        if self.log is None:
            return
        now = self.training.progress
        row = {"kind": kind, "update": now.update, "symbols": now.symbols, **fields}
        self.log.write(row)
        self.report(row)

    def log_training(self) -> None:
        """Writes the means over the updates since the last such row."""
        now, rates = self.training.progress, self.training.rates
        sums, now.pending = now.pending, dict(PENDING)
        count, fitted = sums["updates"], len(rates.optimizers) > 1
        self.write(
            "train",
            bits=bits_of(sums),
            estimator_error=sums["estimator_error"] / count if fitted else None,
            gradient_norm=sums["gradient_norm"] / count,
            lr=rates.lr,
            seconds=now.seconds,
            symbols_per_second=sums["targets"] / sums["seconds"],
        )

    def run(self) -> dict[str, float]:
        """Evaluates: the metrics. Raises ValueError where there are no "bits" among them."""
        ranks = self.training.ranks
        metrics = ranks.from_first(lambda: self.measure(self.evaluate))
        if "bits" not in metrics:
            raise ValueError(f'evaluate must return a dict with "bits"; got {metrics!r}')
        epochs = float(self.training.stream.epochs)
        self.write("valid", **metrics, epochs=epochs, seconds=self.training.progress.seconds)
        return metrics

    def measure_beside(self, kind: str) -> None:
        """Writes the result of a measurement of that kind."""
        self.write(kind, **self.beside(self.others[kind]))

    def beside(self, what: Callable[[SequenceModel], Any] | None) -> Any:
        """What is found of the model; random numbers that are drawn for it are none of the training's."""
        rng = get_rng(self.training.device)
        found = self.training.ranks.from_first(lambda: self.measure(what))
        set_rng(rng, self.training.device)
        return found

    def measure(self, what: Callable[[SequenceModel], Any] | None) -> Any:
        assert what is not None
        model = self.training.model
        model.eval()
        with torch.no_grad():
            metrics = what(model)
        model.train()
        return metrics
