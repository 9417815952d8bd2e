"""AutoTruncation: the truncation of a run follows the bias that is measured of it."""

import math
import time

from dnirnn.horizon import squared_bias
from dnirnn.training.evaluation import Evaluation
from dnirnn.training.feed import ahead, unit_of
from dnirnn.training.state import TrainingState
from dnirnn.training.updater import Updater

KEPT = 0.8  # of the weight of a measurement, at the next one


class AutoTruncation:
    """Keeps a model's truncation at the shortest one whose relative bias is within a bound.

    With f the gradient of a stretch of the stream of 2 L steps uncut, and t that of the same cut every
    K steps, both of everything but the estimator, the relative bias of K is

        bias(K) = |E (t - f)| / |E f|

    for K of 1, 2, 4, ... up to L. Both squares are measured without a bias (see
    :func:`dnirnn.horizon.squared_bias`) and averaged over the measurements, with weights that fall by
    0.8 from one to the next: a single measurement is mostly noise. K is the smallest with
    bias(K) <= ``truncation_bound``, or L where there is none.

    It measures as a run begins, and each time that it is asked to; what it found is in the progress of
    ``training``, and goes into ``evaluation``'s log as a row of kind "truncation".

    training: its TrainerConfig has the truncation_bound, and L, the longest_truncation.
    updater: whose unit changes with the steps of an update.

    Raises ValueError for a model with an estimator, open cuts or an overlap, which have a bias of
    their own, or a stream of one row.

    Source: after Aicher, Foti and Fox, Adaptively Truncating Backpropagation Through Time to Control
    Gradient Bias, UAI 2019, arXiv 1905.07473, who bound the bias by the decay of the norms of
    gradients from step to step, where here it is measured itself.
    """

    def __init__(self, training: TrainingState, evaluation: Evaluation, updater: Updater):
        self.training, self.evaluation, self.updater = training, evaluation, updater
        self.model, self.stream = training.model, training.stream
        truncated, config = self.model.truncated, training.rates.config
        if truncated.estimator.is_used() or truncated.open_cuts is not None or truncated.overlap:
            raise ValueError(
                "truncation_bound is of plain truncation: no estimator, open cuts or overlap; got"
                f" {truncated}"
            )
        if self.stream.batch_size < 2:
            raise ValueError("truncation_bound takes a batch of at least 2 rows; got 1")
        assert config.truncation_bound is not None
        longest, self.bound = config.longest_truncation, config.truncation_bound
        self.truncations = [2**i for i in range(longest.bit_length()) if 2**i < longest] + [longest]

    def begin(self) -> None:
        """Of a run that begins or goes on."""
        if self.training.progress.truncation is None:
            self.adapt()
        self.truncate()

    def adapt(self) -> None:
        """Measures the bias, and takes the truncation that it asks for."""
        began, now = time.perf_counter(), self.training.progress
        now.truncation = self.evaluation.beside(lambda _: self.measure())
        now.add_seconds(time.perf_counter() - began)
        if now.truncation is not None:
            self.truncate()
            self.evaluation.write("truncation", **self.row(now.truncation), seconds=now.seconds)

    def truncate(self) -> None:
        """Has the model cut as was found last."""
        known = self.training.progress.truncation
        if known is not None:
            chunks, rows = self.training.rates.config.chunks, self.stream.batch_size
            self.model.truncated.truncation = known["truncation"]
            self.updater.unit = unit_of(self.model, rows, chunks)

    def measure(self) -> dict | None:
        """Measures on what the stream gives next: what is known then, as JSON has it.

        That is what was known before at a text's end, where too little is left.
        """
        longest, now = self.truncations[-1], self.training.progress
        known, batch = now.truncation, ahead(self.stream, 2 * longest)
        if self.stream.unbroken and len(batch.x) < 2 * longest:
            return known
        state, t = (None, 0) if batch.first else (now.state, now.t)
        batch = batch.to(self.training.device)
        missed, whole = squared_bias(self.model, batch, self.truncations, state, t)
        before = known["sums"] if known else [0.0] * (len(missed) + 1)
        sums = [KEPT * old + new for old, new in zip(before, [*missed, whole])]
        return {"truncation": self.choose(sums), "sums": sums}

    def choose(self, sums: list[float]) -> int:
        biases = self.biases(sums)
        fit = [one for one, bias in zip(self.truncations, biases) if bias <= self.bound]
        return min(fit, default=self.truncations[-1])

    def biases(self, sums: list[float]) -> list[float]:
        """The relative bias of each truncation, by the sums of squares; infinite where |E f|^2 is none."""
        *missed, whole = sums
        return [math.sqrt(max(0.0, one) / whole) if whole > 0 else math.inf for one in missed]

    def row(self, known: dict) -> dict:
        """Its figures for a row of the log."""
        biases = zip(self.truncations, self.biases(known["sums"]))
        return {"truncation": known["truncation"], **{f"bias_{k}": finite(b) for k, b in biases}}


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
