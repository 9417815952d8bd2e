"""The batches of a run's updates, and what an estimator is told of the steps after them."""

import torch
from torch import Tensor

from dnirnn.data import Batch, Stream
from dnirnn.distributed import Ranks
from dnirnn.interface import Interface
from dnirnn.masks import Masks
from dnirnn.model import SequenceModel
from dnirnn.training.config import TrainerConfig
from dnirnn.true_gradient import TrueGradient


def steps_of(model: SequenceModel, chunks: int | str) -> int | None:
    """Steps of an update of so many chunks; None: what is left of the sequence."""
    return None if isinstance(chunks, str) else model.truncated.truncation * chunks


def draw_steps(model: SequenceModel, chunks: int | str, ranks: Ranks) -> int | None:
    """The same, of the next update: drawn where cuts are open."""
    truncated = model.truncated
    if truncated.open_cuts is None:
        return steps_of(model, chunks)
    return truncated.truncation * ranks.from_first(truncated.draw_chunks)


def unit_of(model: SequenceModel, rows: int, chunks: int | str) -> float:
    """What the sum of a batch's nats is multiplied by (see dnirnn.backward)."""
    # With open cuts a call has 1 / (1 - p) chunks in the mean.
    share = 1 - (model.truncated.open_cuts or 0)
    return share / (rows * (steps_of(model, chunks) or 1))


def check_updates(model: SequenceModel, stream: Stream, config: TrainerConfig) -> None:
    """Raises ValueError for updates of chunks, or of pieces of a batch, that can't be made."""
    rows, draws, overlap = config.micro_batch, model.truncated.open_cuts, model.truncated.overlap
    if stream.batch_size % (rows or 1):
        raise ValueError(f"micro_batch must divide the batch size {stream.batch_size}; got {rows}")
    if (draws is not None or overlap) and config.chunks != 1:
        why = f"an overlap of {overlap}" if draws is None else "open_cuts, which draws them"
        raise ValueError(f"chunks must be 1 with {why}; got {config.chunks}")


def next_start(model: SequenceModel, batch: Batch) -> tuple[int, Tensor | None]:
    """(how many steps after this batch's state the next one's is, the inputs between it and the next).

    With overlapping windows those steps are run again.
    """
    truncated = model.truncated
    if not truncated.overlap or batch.final:
        return len(batch.x), None
    seen = batch.x if batch.before is None else torch.cat([batch.before, batch.x])
    start = len(seen) - truncated.next_overlap(len(seen))
    return start, seen[start:]


def read_on(batch: Batch, stream: Stream, reads: int) -> Batch:
    """The stream's last batch with all the steps after it that an estimator reads."""
    if batch.following is None or reads <= len(batch.following.x):
        return batch
    return batch._replace(following=ahead(stream, reads)._replace(following=None))


def ahead(stream: Stream, steps: int | None) -> Batch:
    """What the stream gives next; it stays where it is."""
    place = stream.state_dict()
    batch = stream.next(steps)
    stream.load_state_dict(place)
    return batch


def look_ahead(model: SequenceModel, stream: Stream, batch: Batch, state: Tensor, t: int) -> None:
    """Tells a model's TrueGradient what comes after the stream's last batch."""
    oracle = model.truncated.estimator
    if not batch.final:
        chunks = oracle.lookahead
        steps = None if chunks is None else chunks * model.truncated.truncation
        batch = batch.then(ahead(stream, steps).to(state.device))

    def run() -> tuple[Tensor, list[Interface]]:
        nats, _, interfaces = model(batch, state, t)
        return nats.sum(), interfaces

    oracle.look(run)


def looks_ahead(model: SequenceModel, stream: Stream, micro_batch: int | None) -> bool:
    """Whether the estimator is a TrueGradient. Raises ValueError for what it could not foresee."""
    if not isinstance(model.truncated.estimator, TrueGradient):
        return False
    if model.dropout.p:
        raise ValueError(
            "dropout must be 0 with TrueGradient, which can't foresee its masks; got"
            f" {model.dropout.p}"
        )
    drawn = [part.drop for part in model.modules() if isinstance(part, Masks) and part.drop]
    if stream.unbroken and drawn:
        raise ValueError(
            "zoneout and weight drop must be 0 with TrueGradient on a text, where each update"
            f" draws masks that it can't foresee; got {drawn[0]}"
        )
    if micro_batch is not None and micro_batch < stream.batch_size:
        raise ValueError(
            f"micro_batch must be None with TrueGradient, which is told of whole batches; got"
            f" {micro_batch}"
        )
    return True
