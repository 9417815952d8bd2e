"""The streams of copy and repeat-copy: whole in pieces, growing, resuming anywhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.tasks import bit_sequences, copy, repeat_copy
from dnirnn.tasks.bit_sequences import RECENT, TESTED, BitStream
from dnirnn.tasks.copy import CopyOptions, CopyStream
from dnirnn.tasks.repeat_copy import RepeatCopyOptions, RepeatCopyStream

TASKS = {
    "copy": (CopyStream, CopyOptions, {}),
    "repeat-copy": (RepeatCopyStream, RepeatCopyOptions, dict(start_repeats=2, max_repeats=4)),
}
tasks = st.sampled_from(sorted(TASKS))


def stream_of(task: str, **change) -> BitStream:
    stream, options, own = TASKS[task]
    given = dict(batch=3, bits=2, start_length=2, max_length=5, seed=0, **own)
    return stream(options(**(given | change)))


@given(task=tasks, steps=st.integers(1, 12), length=st.integers(1, 6), sequences=st.integers(1, 3))
def test_pieces_put_together_are_the_sequences(task, steps, length, sequences):
    """final only with a sequence's last step, first only with its first one."""
    stream, whole = (stream_of(task, start_length=length, max_length=9) for _ in range(2))
    for _ in range(sequences):
        pieces = [stream.next(steps)]
        while not pieces[-1].final:
            pieces.append(stream.next(steps))
            assert torch.equal(pieces[-2].following.x, pieces[-1].x[:1])
        assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        expected = whole.next(None)
        assert expected.first and expected.final
        for name in ("x", "y", "weight"):
            parts = torch.cat([getattr(piece, name) for piece in pieces])
            assert torch.equal(parts, getattr(expected, name))
    assert stream.epochs == sequences


@given(task=tasks, before=st.integers(0, 20), steps=st.integers(1, 7), seed=st.integers(0, 5))
def test_a_stream_resumes_anywhere_to_the_bit(task, before, steps, seed):
    stream = stream_of(task, seed=seed)

    def advance(stream, count):
        batches = []
        for _ in range(count):
            batches.append(stream.next(steps))
            if batches[-1].final:
                stream.observe(float(batches[-1].x.sum() % 5) / 20)
        return batches

    # A few more solved sequences bring both sizes away from where they start.
    for _ in range(before):
        stream.observe(0.0)
    advance(stream, before)
    saved = stream.state_dict()
    expected = advance(stream, 15)
    other = stream_of(task, seed=seed + 1)
    other.load_state_dict(saved)
    for one, same in zip(advance(other, 15), expected):
        assert all(torch.equal(a, b) for a, b in zip(one[:3], same[:3])) and one[3:5] == same[3:5]
    assert other.state_dict().keys() == stream.state_dict().keys()
    assert (other.stage, other.figures) == (stream.stage, stream.figures)


@pytest.mark.parametrize("task", TASKS)
def test_it_grows_when_recent_sequences_are_solved(task):
    stream = stream_of(task)
    small = stream.score()
    for _ in range(RECENT - 1):
        stream.observe(0.0)
    assert (stream.length, *stream.figures.values()) == (2, *[0] * len(small))
    stream.observe(0.0)
    assert (stream.length, stream.figures) == (3, small)
    larger, stage = stream.score(), stream.stage
    for bits in [0.2] * RECENT + [0.1] * (RECENT // 2 - 1):
        stream.observe(bits)
    assert stream.stage == stage
    for _ in range(RECENT):
        stream.observe(0.1)
    assert (stream.stage, stream.figures) == (stage + 1, larger)


@pytest.mark.parametrize("task", TASKS)
def test_it_stops_growing_at_the_largest(task):
    stream = stream_of(task)
    for _ in range(30 * RECENT):
        stream.observe(0.0)
    assert stream.stage == stream.stages and stream.length == 5
    assert stream.figures == stream.score()


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_solves_more_has_fewer_bits_left(task):
    _, options, _ = TASKS[task]
    built = {"copy": copy, "repeat-copy": repeat_copy}[task].build(options(hidden=8, max_length=4))
    bits = []
    for built.stream.length in (1, 2, 4):
        bits.append(built.evaluate(built.model)["bits"])
    assert bits[0] <= 1 and bits[0] > bits[1] > bits[2] > 0


@pytest.mark.parametrize("task", TASKS)
def test_fresh_sequences_are_the_same_at_every_call_and_not_those_of_training(task):
    vectors = bit_sequences.fresh_bits(5, 8)
    assert torch.equal(vectors, bit_sequences.fresh_bits(5, 8))
    stream = stream_of(task, bits=8, start_length=5, batch=TESTED)
    assert not torch.equal(stream.lay_out(vectors).x, stream.next(None).x)


@pytest.mark.parametrize("task", TASKS)
def test_the_first_length_is_at_most_the_last(task):
    with pytest.raises(ValueError, match="--start-length .*at most --max-length 8; got 9"):
        stream_of(task, start_length=9, max_length=8)
