"""copy: what a sequence looks like, the curriculum, a stream that resumes anywhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dnirnn.data import Batch
from dnirnn.tasks import copy
from dnirnn.tasks.copy import CopyOptions, CopyStream, copy_batch
from dnirnn.tasks.task import trainer_config
from dnirnn.trainer import Trainer

sizes = st.integers(1, 6)


def stream_of(**change) -> CopyStream:
    given = dict(batch_size=3, bits=2, start_length=2, max_length=5, solved_below=0.15, seed=0)
    return CopyStream(**(given | change))


@given(length=sizes, rows=sizes, bits=sizes, seed=st.integers(0, 9))
def test_a_sequence_is_vectors_delimiter_silence_and_the_vectors_again(length, rows, bits, seed):
    batch = copy_batch(length, rows, bits, torch.Generator().manual_seed(seed))
    assert batch.x.shape == (2 * length + 1, rows, bits + 1)
    vectors, delimiter, silence = batch.x.split([length, 1, length])
    assert set(vectors.unique().tolist()) <= {0.0, 1.0} and not vectors[..., bits].any()
    assert not delimiter[..., :bits].any() and bool((delimiter[..., bits] == 1).all())
    assert not silence.any()
    assert torch.equal(batch.y[length + 1 :], vectors[..., :bits])
    assert torch.equal(batch.weight.sum(0), torch.full((rows,), float(length)))
    assert not batch.weight[: length + 1].any()


@given(steps=st.integers(1, 12), length=sizes, sequences=st.integers(1, 3))
def test_pieces_put_together_are_the_sequences(steps, length, sequences):
    """final only with a sequence's last step, first only with its first one."""
    stream = stream_of(start_length=length, max_length=9)
    whole = stream_of(start_length=length, max_length=9)
    for _ in range(sequences):
        pieces = [stream.next(steps)]
        while not pieces[-1].final:
            pieces.append(stream.next(steps))
        assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        expected = whole.next(None)
        assert expected.first and expected.final
        for name in ("x", "y", "weight"):
            parts = torch.cat([getattr(piece, name) for piece in pieces])
            assert torch.equal(parts, getattr(expected, name))


@given(before=st.integers(0, 20), steps=st.integers(1, 7), seed=st.integers(0, 5))
def test_a_stream_resumes_anywhere_to_the_bit(before, steps, seed):
    stream = stream_of(seed=seed)

    def advance(stream, count):
        batches = []
        for _ in range(count):
            batches.append(stream.next(steps))
            if batches[-1].final:
                stream.observe(float(batches[-1].x.sum() % 5) / 20)
        return batches

    advance(stream, before)
    saved = stream.state_dict()
    expected = advance(stream, 15)
    other = stream_of(seed=seed + 1)
    other.load_state_dict(saved)
    for one, same in zip(advance(other, 15), expected):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], same[:3])) and one[3:5] == same[3:5]
    assert (other.length, other.solved) == (stream.length, stream.solved)


def test_the_length_grows_when_recent_sequences_are_solved():
    stream = stream_of()
    for _ in range(copy.RECENT - 1):
        stream.observe(0.0)
    assert (stream.length, stream.solved) == (2, 0)
    stream.observe(0.0)
    assert (stream.length, stream.solved) == (3, 2)
    for bits in [0.2] * copy.RECENT + [0.1] * (copy.RECENT // 2 - 1):
        stream.observe(bits)
    assert stream.length == 3
    for _ in range(copy.RECENT):
        stream.observe(0.1)
    assert (stream.length, stream.solved) == (4, 3)


def test_the_length_stops_growing_at_the_longest():
    stream = stream_of(start_length=5)
    for _ in range(3 * copy.RECENT):
        stream.observe(0.0)
    assert (stream.length, stream.solved) == (5, 5)


class Oracle(nn.Module):
    """Knows the batch, and says it with the given certainty at lengths up to a limit."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit
        self.loss = copy.mean_bit_nats

    def logits(self, batch: Batch) -> torch.Tensor:
        known = len(batch.x) // 2 <= self.limit
        return (2 * batch.y - 1) * (20.0 if known else 0.0)


def test_a_guess_costs_one_bit_a_bit_and_the_right_answer_none(monkeypatch):
    options = CopyOptions(bits=3, max_length=4)
    oracle = Oracle(limit=2)
    monkeypatch.setattr(
        copy,
        "error_on",
        lambda model, batch: float(
            (model.loss(model.logits(batch), batch.y) * batch.weight).sum() / batch.weight.sum()
        )
        / math.log(2),
    )
    errors = copy.measure(oracle, [1, 2, 3, 4], options)
    assert errors == pytest.approx([0, 0, 1, 1], abs=1e-6)


def test_fresh_sequences_are_the_same_at_every_call_and_not_those_of_training():
    options = CopyOptions(bits=8, batch=4)
    model = copy.make(options)
    assert copy.measure(model, [3, 5], options) == copy.measure(model, [3, 5], options)
    batch = copy.fresh_batch(5, options)
    training = copy.build(CopyOptions(bits=8, start_length=5, batch=copy.TESTED)).stream.next(None)
    assert not torch.equal(batch.x, training.x)


def test_the_error_is_that_of_the_loss_the_trainer_sees():
    options = CopyOptions(bits=2, hidden=8)
    task = copy.build(options)
    batch = copy.fresh_batch(3, options)
    with torch.no_grad():
        nats, _, _ = task.model(batch, task.model.initial_state(copy.TESTED))
    bits = float(nats.sum() / batch.weight.sum()) / math.log(2)
    assert copy.measure(task.model, [3], options) == [pytest.approx(bits, rel=1e-5)]


def test_a_run_that_solves_more_has_fewer_bits_left():
    task = copy.build(CopyOptions(hidden=8, max_length=4))
    bits = []
    for task.stream.length in (1, 2, 4):
        bits.append(task.evaluate(task.model)["bits"])
    assert 1 == pytest.approx(bits[0], abs=0.01) and bits[0] > bits[1] > bits[2]


def test_it_learns_beyond_the_first_lengths(tmp_path):
    options = CopyOptions(
        bits=1, hidden=32, truncation=4, lr=1e-2, batch=16, updates=800, max_length=6,
        estimator_hidden=("linear",), evaluate_every=10**6, seed=1,
    )
    task = copy.build(options)
    config = trainer_config(options, task.symbols_per_update, copy.DECAY)
    arguments = (task.model, task.stream, config, tmp_path / "run", task.evaluate, task.config)
    result = Trainer(*arguments, task.test).run()
    assert result["test"]["solved"] >= 2


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(start_length=9, max_length=8), "--start-length .*at most --max-length 8; got 9"),
        (dict(bits=0), "--bits must be at least 1; got 0"),
        (dict(update_steps=3), "--update-steps must be a multiple of --truncation 8; got 3"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        copy.build(CopyOptions(**change))


def test_a_truncation_longer_than_a_sequence_is_one_chunk():
    task = copy.build(CopyOptions(hidden=4, truncation=100, batch=2))
    batch = task.stream.next(100)
    assert batch.first and batch.final and len(batch.x) == 3
    _, _, (cut,) = task.model(batch, task.model.initial_state(2))
    assert cut.sent.shape[0] == 1 and cut.terminal is True
