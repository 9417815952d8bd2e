"""copy: what a sequence looks like, what an error is, and that it learns."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.config.task import trainer_config
from dnirnn.tasks import copy
from dnirnn.tasks.bit_sequences import TESTED, measure, random_bits
from dnirnn.tasks.copy import CopyOptions
from dnirnn.training.trainer import Trainer

sizes = st.integers(1, 6)


@given(length=sizes, rows=sizes, bits=sizes, seed=st.integers(0, 9))
def test_a_sequence_is_vectors_delimiter_silence_and_the_vectors_again(length, rows, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = copy.lay_out(random_bits((length, rows, bits), generator))
    assert batch.x.shape == (2 * length + 1, rows, bits + 1)
    vectors, delimiter, silence = batch.x.split([length, 1, length])
    assert set(vectors.unique().tolist()) <= {0.0, 1.0} and not vectors[..., bits].any()
    assert not delimiter[..., :bits].any() and bool((delimiter[..., bits] == 1).all())
    assert not silence.any()
    assert torch.equal(batch.y[length + 1 :], vectors[..., :bits])
    assert torch.equal(batch.weight.sum(0), torch.full((rows,), float(length)))
    assert not batch.weight[: length + 1].any()


def test_a_guess_costs_one_bit_a_bit_and_the_right_answer_none(monkeypatch):
    options = CopyOptions(bits=3, hidden=4)
    batches = [copy.fresh(length, options) for length in (1, 2, 3)]
    known = batches[1]

    def unroll(model, x, state, t):
        right = 40 * known.y - 20
        return (right if len(x) == len(known.x) else torch.zeros(len(x), TESTED, 3)), state

    made = copy.make(options)
    monkeypatch.setattr(type(made), "unroll", unroll)
    assert measure(made, batches) == pytest.approx([1, 0, 1], abs=1e-6)


def test_the_error_is_that_of_the_loss_the_trainer_sees():
    options = CopyOptions(bits=2, hidden=8)
    task = copy.build(options)
    batch = copy.fresh(3, options)
    with torch.no_grad():
        nats, _, _ = task.model(batch, task.model.initial_state(TESTED))
    bits = float(nats.sum() / batch.weight.sum()) / math.log(2)
    assert measure(task.model, [batch]) == [pytest.approx(bits, rel=1e-5)]


def test_it_learns_beyond_the_first_lengths(tmp_path):
    options = CopyOptions(
        bits=1, hidden=32, truncation=4, lr=1e-2, batch=16, updates=1500, max_length=6,
        evaluate_every=10**6, seed=1,
    )
    task = copy.build(options)
    config = trainer_config(options, task.symbols_per_update, copy.DECAY)
    arguments = (task.model, task.stream, config, tmp_path / "run", task.evaluate, task.config)
    result = Trainer(*arguments, task.test).run()
    assert result["test"]["solved"] >= 2


@pytest.mark.parametrize(
    "change, message",
    [
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
    assert cut.end.shape[0] == 1 and cut.chunks.final is True
