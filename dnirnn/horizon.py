"""The horizon: how many coming steps the gradient at a cut comes from, and what a cut loses."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.data import Batch
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.model import SequenceModel
from dnirnn.true_gradient import TrueGradient, by_lookahead
from dnirnn.truncated import cut_otherwise


class Reach(NamedTuple):
    """What of a cut's gradient is due to the next ``steps`` steps, over many positions.

    With G_w the gradient of the loss of the next w steps with respect to a state, and G that of all
    the steps looked at: cosine = <G_w, G> / |G_w| |G| and norm_ratio = |G_w| / |G|, each as
    (lower quartile, mean, upper quartile) over positions. Positions where a vector is zero count
    with a cosine of 0.
    """

    steps: int
    cosine: tuple[float, float, float]
    norm_ratio: tuple[float, float, float]


class Horizon(NamedTuple):
    """reaches: of 1, 2, 4, ... steps and of all that were looked at. norms: |G| (median, 99 %, largest).

    positions: how many were measured.
    """

    reaches: list[Reach]
    norms: tuple[float, float, float]
    positions: int


class Bias(NamedTuple):
    """What a truncation leaves out of the gradient of the core, the encoder and the readout.

    With f the gradient of a stretch uncut, t cut every ``truncation`` steps, both of a row, and
    means over the rows:

        bias = |mean (t - f)| / |mean f|
        bias_to_noise = |mean (t - f)| / (standard error of mean t)

    with |mean (t - f)|^2 less what the sample's own noise adds to it, not below zero, and the standard
    error sqrt(sum of variances / rows). Where bias_to_noise is far below 1, the noise of
    an update of so many rows hides the cut; where it is above, a larger batch makes it no better.
    """

    truncation: int
    bias: float
    bias_to_noise: float


def horizon(model: SequenceModel, batch: Batch, lookahead: int = 40) -> Horizon:
    """How many coming steps the gradient at a cut comes from, at every state of a stretch.

    batch: starts new sequences, and is run whole: its graph is held in memory. Positions with fewer
        than ``lookahead`` steps before them are not measured, unless the sequences end with it.
    lookahead: steps that count as all there is.

    Takes ``lookahead`` backward passes through single steps, side by side. Run it in eval mode:
    dropout's masks would be drawn. No .grad is touched. The truncation and the estimator of
    the model play no part.

    Raises ValueError for a lookahead below 1, or a batch without a position to measure.
    """
    if isinstance(lookahead, bool) or not isinstance(lookahead, int) or lookahead < 1:
        raise ValueError(f"lookahead must be an int of at least 1 step; got {lookahead!r}")
    steps = len(batch.x)
    count = steps if batch.final else steps + 1 - lookahead
    if count < 1:
        raise ValueError(f"batch must have at least lookahead={lookahead} steps; got {steps}")
    lookahead = min(lookahead, steps)
    spans = {2**i for i in range(lookahead.bit_length())} | {lookahead}
    with torch.enable_grad():
        nats, (cut,) = cut_every(model, batch, 1, TrueGradient())
        found = {}
        for span, gradient in enumerate(by_lookahead(nats.sum(), cut), 1):
            if span in spans:
                found[span] = gradient[:count].flatten(0, 1).double()
            if span == lookahead:
                break
    whole = found[lookahead]
    norm = whole.norm(dim=1)
    reaches = [
        Reach(span, spread(torch.cosine_similarity(part, whole, eps=1e-300)),
              spread(ratio(part.norm(dim=1), norm)))
        for span, part in sorted(found.items())
    ]  # fmt: skip
    marks = torch.tensor([0.5, 0.99, 1.0], dtype=norm.dtype, device=norm.device)
    median, high, largest = quantiles(norm, marks)
    return Horizon(reaches, (median, high, largest), len(norm))


def truncation_bias(model: SequenceModel, batch: Batch, truncations: Sequence[int]) -> list[Bias]:
    """What each truncation leaves out of the gradient of a stretch, against its noise.

    batch: starts new sequences, at least two rows, independent samples of what is trained on.
    truncations: each at least 1; one as long as the batch leaves nothing out.

    Takes a backward pass a row and truncation. As for :func:`horizon`, in eval mode; no .grad is
    touched.

    Raises ValueError for a batch of one row.
    """
    rows = check_rows(batch)
    uncut = gradients_of(model, batch, len(batch.x), rows)
    found = []
    for truncation in truncations:
        cut = gradients_of(model, batch, truncation, rows)
        bias = square_of_mean(cut - uncut).clamp_min(0).sqrt()
        noise = (cut.var(0).sum() / rows).sqrt()
        figures = ratio(bias, uncut.mean(0).norm()), ratio(bias, noise)
        found.append(Bias(truncation, *(float(figure) for figure in figures)))
    return found


def squared_bias(
    model: SequenceModel,
    batch: Batch,
    truncations: Sequence[int],
    state: Tensor | None = None,
    t: int = 0,
    groups: int = 4,
) -> tuple[list[float], float]:
    """Of each truncation |E (t - f)|^2, and |E f|^2, with t and f as of :class:`Bias`: without a bias.

    That is, what is wrong with them through the sample at hand has a mean of zero, so that means over
    several measurements become as exact as one likes: a single one may be below zero.

    state, t: what the batch starts from; None: new sequences. groups: of rows, which count as one
    sample each; a backward pass a group and truncation.

    Raises ValueError for a batch of one row.
    """
    groups = min(groups, check_rows(batch))
    uncut = gradients_of(model, batch, len(batch.x), groups, state, t)
    missed = [
        float(square_of_mean(gradients_of(model, batch, one, groups, state, t) - uncut))
        for one in truncations
    ]
    return missed, float(square_of_mean(uncut))


def check_rows(batch: Batch) -> int:
    rows = batch.x.shape[1]
    if rows < 2:
        raise ValueError(f"batch must have at least 2 rows, to know their noise; got {rows}")
    return rows


def square_of_mean(samples: Tensor) -> Tensor:
    """|E v|^2, 0-d, of samples [G, P] of v: the square of their mean less what their noise adds to it."""
    return samples.mean(0).square().sum() - samples.var(0).sum() / len(samples)


def gradients_of(
    model: SequenceModel,
    batch: Batch,
    truncation: int,
    groups: int,
    state: Tensor | None = None,
    t: int = 0,
) -> Tensor:
    """[G, P], of the mean nats of a row of each group, with respect to all but the estimator, cut so often."""
    parameters = [one for one in model.core_parameters() if one.requires_grad]
    found = []
    for group in torch.arange(batch.x.shape[1]).tensor_split(groups):
        rows = slice(int(group[0]), int(group[-1]) + 1)
        own = None if state is None else state[rows]
        with torch.enable_grad():
            part = batch.rows(rows.start, rows.stop)
            nats, _ = cut_every(model, part, truncation, ZeroGradient(), own, t)
            gradients = torch.autograd.grad(
                nats.sum() / len(group), parameters, allow_unused=True, materialize_grads=True
            )
        found.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    return torch.stack(found)


def cut_every(
    model: SequenceModel,
    batch: Batch,
    truncation: int,
    estimator: GradientEstimator,
    state: Tensor | None = None,
    t: int = 0,
) -> tuple[Tensor, list]:
    """(nats, interfaces) of a batch, with other cuts than the model's own.

    state, t: what it starts from; None: the initial state.
    """
    state = model.initial_state(batch.x.shape[1]) if state is None else state
    with cut_otherwise(model.truncated, estimator, truncation):
        nats, _, interfaces = model(batch, state, t)
    return nats, interfaces


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0 where both are."""
    return torch.where(part == 0, 0.0, part / whole)


def spread(values: Tensor) -> tuple[float, float, float]:
    """(lower quartile, mean, upper quartile)."""
    marks = torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device)
    low, high = quantiles(values, marks)
    return low, float(values.mean()), high


def quantiles(values: Tensor, marks: Tensor) -> list[float]:
    return torch.quantile(values, marks).tolist()
