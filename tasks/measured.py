"""What tasks share whose sequences are drawn anew and measured whole: the run, and its figures."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dnirnn.config.network import device_of
from dnirnn.config.saved import identity
from dnirnn.config.task import Task, steps_per_update
from dnirnn.data import Batch, Stream
from dnirnn.model import SequenceModel

# Of (the model's outputs, the batch), what is added up over the rows of all batches.
Sums = Callable[[Tensor, Batch], dict[str, Tensor]]

VALIDATION, TEST = 2**40, 2**40 + 1  # seeds, apart from those of training, which are small


def outputs_of(model: SequenceModel, batch: Batch) -> Tensor:
    """The model's outputs for whole sequences, [T, B, O]: uncut, without dropout or gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            state = model.initial_state(batch.x.shape[1])
            return model.unroll(batch.x, state, model.clock(batch, 0))[0]
    finally:
        model.train(training)


def measure(model: SequenceModel, batches: Sequence[Batch], sums: Sums) -> dict[str, float]:
    """The means over the rows of all batches of what ``sums`` adds up, in float64."""
    device, found, rows = device_of(model), {}, 0
    for batch in batches:
        batch, rows = batch.to(device), rows + batch.x.shape[1]
        for name, value in sums(outputs_of(model, batch), batch).items():
            found[name] = found.get(name, 0.0) + float(value.sum(dtype=torch.float64))
    return {name: value / rows for name, value in found.items()}


def make_task(
    name: str,
    options: Any,
    model: SequenceModel,
    stream: Stream,
    held_out: Callable[[int], Sequence[Batch]],
    sums: Sums,
    loss: str,
    targets: int,
    notice: str,
    steps: int,
    found: dict[str, Any] | None = None,
) -> Task:
    """The task of these parts.

    held_out: whole sequences of a seed, VALIDATION or TEST. loss: which of the sums is to be made
        small. targets: of a whole sequence, those that count; steps: of it. found: what goes into the
        run's configuration beside the options.
    """
    taken = steps_per_update(options)
    tested = partial(measure, sums=sums)

    def evaluate(model: SequenceModel) -> dict[str, float]:
        of = tested(model, held_out(VALIDATION))
        # As the trainer has it, which reads the loss as nats.
        return {"bits": of[loss] / math.log(2), **of}

    def test(model: SequenceModel) -> dict[str, float]:
        return {f"test_{key}": value for key, value in tested(model, held_out(TEST)).items()}

    return Task(
        model,
        stream,
        evaluate,
        test,
        options.batch * targets * (1 if taken is None else min(1, taken / steps)),
        {"task": name, **identity(options), **(found or {})},
        notice,
        lambda steps: held_out(VALIDATION)[0],
    )
