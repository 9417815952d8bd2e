"""The figures of the images task: how much is predicted wrong, and how good the predictors are."""

import math

import torch
from torch.nn import functional as F

from dnirnn.config.task import Figure, Task
from dnirnn.data.images import Images
from dnirnn.tasks.images.data import batches, load
from dnirnn.tasks.images.network import ImageModel, one_hot
from dnirnn.tasks.images.options import ImagesOptions

FIGURES = (
    Figure("test_error", "test error, %", "{:.2f}", True),
    Figure("error", "validation error, %", "{:.2f}", True),
    Figure("bits", "validation, bits per image", "{:.4f}", True),
)
FIDELITY_ROWS = 1000


def measure(model: ImageModel, known: Images, split: str) -> dict[str, float]:
    """{"bits": mean bits of a label, "error": percent that are predicted wrong} of a split."""
    training, nats, wrong = model.training, 0.0, 0
    model.eval()
    try:
        with torch.no_grad():
            for x, y in batches(known, split, next(model.parameters()).device):
                logits = model.logits(x)
                nats += float(F.cross_entropy(logits, y, reduction="sum"))
                wrong += int((logits.argmax(1) != y).sum())
    finally:
        model.train(training)
    count = len(known.splits[split][1])
    return {"bits": nats / count / math.log(2), "error": 100 * wrong / count}


def fidelity(model: ImageModel, known: Images) -> dict[str, float]:
    """How near each predictor is to the true gradient, on validation images: a figure a cut.

    cosine_1, ..: with g a predictor's output at h, unscaled, and G the gradient that
    backpropagation has there, sum g G / sqrt(sum g^2 sum G^2) over all rows. norm_ratio_1, ..:
    sqrt(sum g^2 / sum G^2). No .grad is touched.
    """
    x, y = next(batches(known, "valid", next(model.parameters()).device))
    found = {}
    with torch.enable_grad():
        x, y = model.pictures(x[:FIDELITY_ROWS]), y[:FIDELITY_ROWS]
        output, cuts = model.decoupled.interfaces(x, one_hot(y), through=True)
        loss = F.cross_entropy(output, y, reduction="sum")
        true = torch.autograd.grad(loss, [cut.probe for cut in cuts])
    with torch.no_grad():
        for place, (cut, wanted) in enumerate(zip(cuts, true), start=1):
            context = () if cut.context is None else (cut.context[0],)
            predicted = cut.estimator(cut.start[0], *context).double()
            wanted = wanted[0].double()
            lengths = predicted.norm() * wanted.norm()
            found[f"cosine_{place}"] = float((predicted * wanted).sum() / lengths) if lengths else 0.0
            found[f"norm_ratio_{place}"] = float(predicted.norm() / wanted.norm())
    return found


def measurement(task: Task, options: ImagesOptions):
    """What a trainer measures every so often; None where the options ask for nothing."""
    if options.fidelity_every is None:
        return None
    known = load(options)
    return lambda model: fidelity(model, known)
