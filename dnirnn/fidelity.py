"""Fidelity: how near an estimator's output is to the gradient that it stands in for."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dnirnn.data import Batch
from dnirnn.model import SequenceModel
from dnirnn.true_gradient import TrueGradient, true_gradients
from dnirnn.truncated import cut_otherwise


def fidelity(
    model: SequenceModel, stretches: Iterable[Batch], lookahead: int | None = None
) -> dict[str, float | None]:
    """Compares what the model's estimator predicts at the boundaries of stretches with the truth.

    With g the estimator's output at a boundary, unscaled, and G the true gradient there (see
    ``true_gradients``), over all S elements of all rows of all boundaries together:

        cosine = sum g G / sqrt(sum g^2 sum G^2)
        norm_ratio = sqrt(sum g^2 / sum G^2)
        relative_error = sqrt(sum (g - G)^2 / sum G^2)

    once against G at the estimator's own discount, which is the fixed point of its targets (what
    it would predict had it learned them perfectly), and once, as cosine_1, norm_ratio_1 and
    relative_error_1, against G at discount 1: the gradient of all the loss that comes. The first
    say whether the estimator has learned its task, the others whether the task is the right one.

    stretches: each starts new sequences, and is run whole: its graph is held in memory.
    lookahead: chunks of coming loss that count; None: all to the stretch's end. Boundaries that
        have fewer before them are not measured, unless the sequences end with the stretch.

    Returns also "boundaries", their number. The cosine is 0 where g is 0 everywhere; where G is,
    all are None. Run it in eval mode: dropout's masks would be drawn. No .grad is touched.

    Raises ValueError where a stretch has no boundary to measure.
    """
    truncated = model.truncated
    estimator, length = truncated.estimator, truncated.truncation
    sums, boundaries = torch.zeros(2, 3, dtype=torch.float64), 0
    for batch in stretches:
        state = model.initial_state(batch.x.shape[1])
        context = []
        with torch.enable_grad():
            if estimator.needs_context:
                whole = model.context(batch, model.encoder(batch.x))
                context = [whole[[*range(length, len(batch.x), length), len(batch.x)]]]
            with cut_otherwise(truncated, TrueGradient()):
                nats, _, (cut,) = model(batch, state)
            found = [
                true_gradients(nats.sum(), cut, lookahead, discount)[1:]
                for discount in (estimator.discount, 1.0)
            ]
        with torch.no_grad():
            predicted = estimator(cut.end.detach(), *context)[:-1].double()
        count = len(predicted) if batch.final else len(predicted) + 1 - (lookahead or 1)
        if count < 1:
            raise ValueError(
                f"a stretch must have a boundary and {lookahead or 1} chunks of {length} steps"
                f" after it; got {len(batch.x)} steps"
            )
        boundaries += count
        sums += torch.stack([products(predicted[:count], true[:count].double()) for true in found]).cpu()
    figures: dict[str, float | None] = {"boundaries": boundaries}
    for suffix, (said_said, said_true, true_true) in zip(("", "_1"), sums):
        cosine = said_true / (said_said * true_true).sqrt() if said_said else said_said
        error = (said_said - 2 * said_true + true_true).clamp(min=0)
        values = (cosine, (said_said / true_true).sqrt(), (error / true_true).sqrt())
        for name, value in zip(("cosine", "norm_ratio", "relative_error"), values):
            figures[name + suffix] = float(value) if true_true else None
    return figures


def products(predicted: Tensor, true: Tensor) -> Tensor:
    """[sum g g, sum g G, sum G G]."""
    return torch.stack([(predicted * predicted).sum(), (predicted * true).sum(), (true * true).sum()])
