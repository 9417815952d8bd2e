"""Dynamic evaluation: a model goes on learning from the text that it is measured on, after each part.

Source: Krause, Kahembwe, Murray and Renals, Dynamic Evaluation of Neural Sequence Models, 2018, arXiv
1709.07432: the update of section 5, with gradients scaled by their size on the training text (RMS).
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dnirnn.checks import check_instances, check_knobs, check_sizes, shown
from dnirnn.data import Batch, Stream
from dnirnn.estimators import ZeroGradient
from dnirnn.interface import backward
from dnirnn.model import SequenceModel
from dnirnn.truncated import Truncated


def adaptable(model: SequenceModel, steps: int) -> SequenceModel:
    """A copy of the model in eval mode, cut every ``steps`` steps, with nothing at the cuts."""
    made = copy.deepcopy(model).eval()
    made.truncated = Truncated(made.truncated.core, steps, ZeroGradient())
    return made


def gradients_of(
    model: SequenceModel, batch: Batch, state: Tensor, t: int
) -> tuple[Tensor, Tensor]:
    """(nats [T, B], last state); every .grad is that of the mean nats of the targets that count."""
    model.zero_grad()
    with torch.enable_grad():
        nats, state, interfaces = model(batch, state, t)
        backward(nats.sum() / max(1, batch.count()), interfaces)
    return nats.detach(), state


def mean_squares(
    model: SequenceModel, stream: Stream, steps: int = 20, parts: int = 200
) -> list[Tensor]:
    """The mean square of the gradient of each of the model's core_parameters(), of their shapes.

    stream: a training text in parallel rows; the gradients are those of the mean nats of its rows.
    steps: of a part. parts: how many there are, or as many as the first sequence has.
    """
    known = adaptable(model, steps)
    device = next(known.parameters()).device
    squares = [torch.zeros_like(parameter) for parameter in known.core_parameters()]
    state, t, count, final = known.initial_state(stream.batch_size), 0, 0, False
    while count < parts and not final:
        batch = stream.next(steps).to(device)
        _, state = gradients_of(known, batch, state, t)
        for square, parameter in zip(squares, known.core_parameters()):
            if parameter.grad is not None:
                square.addcmul_(parameter.grad, parameter.grad)
        t, count, final = t + len(batch.x), count + 1, batch.final
    return [square / count for square in squares]


class DynamicEvaluation:
    """Measures a text while the weights move: each part is scored, and only then learned from.

    With theta_0 the model's weights, g the gradient of a part's mean nats and m its mean square on
    the training text (``squares``), elementwise,

        r     = sqrt(m) / mean(sqrt(m))                    the mean over all parameters
        theta <- theta - rate g / (sqrt(m) + epsilon) + min(decay r, 1) (theta_0 - theta)

    The state is carried through the whole text. The model itself stays as it is. At rate 0 it is the
    plain evaluation of one pass.

    squares: of :func:`mean_squares`, for the same model.
    rate, decay: at least 0; find them on validation. steps: of a part, at least 1.

    Raises ValueError for one of them outside its range, or squares that are not the model's.
    """

    def __init__(
        self,
        model: SequenceModel,
        squares: Sequence[Tensor],
        rate: float,
        decay: float = 0.0,
        steps: int = 20,
        epsilon: float = 2e-5,
    ):
        check_instances(SequenceModel, model=model)
        check_knobs(rate=rate, decay=decay, epsilon=epsilon)
        check_sizes(steps=steps)
        if not isinstance(squares, Sequence) or not all(isinstance(s, Tensor) for s in squares):
            raise TypeError(f"squares must be a list of tensors; got {shown(squares)}")
        shapes = [tuple(parameter.shape) for parameter in model.core_parameters()]
        if [tuple(square.shape) for square in squares] != shapes:
            raise ValueError("squares must be one tensor for each of the model's core_parameters()")
        self.model, self.rate, self.decay, self.steps = model, rate, decay, steps
        self.roots = [square.sqrt() for square in squares]
        count = sum(root.numel() for root in self.roots)
        mean = sum(float(root.sum(dtype=torch.float64)) for root in self.roots) / count
        self.scales = [1 / (root + epsilon) for root in self.roots]
        self.returns = [(decay * root / (mean or 1.0)).clamp(max=1.0) for root in self.roots]

    def __call__(
        self, stream: Stream, ignore: int | None = None, most: int | None = None
    ) -> dict[str, float]:
        """{"bits": mean bits per target, "targets": count} of a stream's next sequence.

        stream: of one row, so that nothing is learned of what comes later.
        ignore: a symbol that is read, and neither scored nor learned as a target.
        most: stop after about so many steps; None: at the sequence's end.

        Raises ValueError for a stream of several rows.
        """
        if stream.batch_size != 1:
            raise ValueError(f"stream must have one row; got batch_size={stream.batch_size}")
        model = adaptable(self.model, self.steps)
        parameters = model.core_parameters()
        start = [parameter.detach().clone() for parameter in parameters]
        state, t, nats, targets, final = model.initial_state(1), 0, 0.0, 0, False
        while not final and (most is None or t < most):
            batch = stream.next(self.steps)
            if ignore is not None:
                counts = batch.y.cpu() != ignore
                batch = batch._replace(weight=counts.float() * (batch.weight is None or batch.weight))
            targets += batch.count()
            found, state = gradients_of(model, batch.to(start[0].device), state, t)
            nats += float(found.sum(dtype=torch.float64))
            t, final = t + len(batch.x), batch.final
            self.move(parameters, start)
        return {"bits": nats / max(1, targets) / math.log(2), "targets": targets}

    @torch.no_grad()
    def move(self, parameters: Sequence[Tensor], start: Sequence[Tensor]) -> None:
        """One update of the weights."""
        for parameter, first, scale, back in zip(parameters, start, self.scales, self.returns):
            to_start = (first - parameter).mul_(back)
            if parameter.grad is not None:
                to_start.addcmul_(parameter.grad, scale, value=-self.rate)
            parameter.add_(to_start)
