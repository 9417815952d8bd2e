"""What teachers predict along a text is asked once and looked up: at the right steps, and never stale."""

import pytest
import torch
from small_runs import SYMBOLS, Recall, small_stream, ticking

from dnirnn import Distillation, DistilledStream, distillation
from dnirnn.distillation import Uniform


class Counted(Distillation):
    """Counts the steps that its teachers are asked at."""

    asked_at = 0

    def soft(self, x, states, t=0):
        self.asked_at += len(x)
        return super().soft(x, states, t)


@pytest.fixture
def short_windows(monkeypatch):
    """Several windows an epoch: teachers' states and times go from one to the next."""
    monkeypatch.setattr(distillation, "WINDOW", 7)


def whole_epoch(stream):
    teacher, full = ticking(), stream.next(None)
    logits, _ = teacher.unroll(full.x, teacher.initial_state(full.x.shape[1]), 0)
    return torch.softmax(logits, -1).detach()


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=2**-11 + 1e-5, atol=2**-25 + 1e-7)
    assert torch.equal(found, found.half().float())


def test_teachers_are_asked_once_of_a_text_that_repeats(short_windows):
    made = Counted([ticking()])
    stream = DistilledStream(small_stream(), made)
    steps = stream.stream.epoch_steps
    first = [stream.next(5).soft for _ in range(-(-steps // 5))]
    assert made.asked_at == steps + 1  # a step, to see how many symbols there are
    near(torch.cat(first), whole_epoch(small_stream()))
    again = [stream.next(5).soft for _ in first]
    assert made.asked_at == steps + 1 and all(map(torch.equal, first, again))
    stream.to(torch.device("cpu"))
    assert torch.equal(stream.next(5).soft, first[0]) and made.asked_at > steps + 1


@pytest.mark.parametrize("steps", [1, 7, 16, 1000])
def test_what_is_kept_does_not_depend_on_the_lengths_of_updates(short_windows, steps):
    def epoch(steps):
        stream, found = DistilledStream(small_stream(), Distillation([ticking()])), []
        while stream.epochs < 1:
            found.append(stream.next(steps).soft)
        return torch.cat(found)

    assert torch.equal(epoch(steps), epoch(3))


def test_a_stream_that_goes_on_asks_again_and_finds_the_same(short_windows):
    one, other = (DistilledStream(small_stream(), Counted([ticking()])) for _ in range(2))
    for _ in range(9):  # into the second epoch
        one.next(7)
    place = one.state_dict()
    assert place["teachers"] is None
    other.load_state_dict(place)
    asked_at = other.distillation.asked_at
    assert asked_at > other.stream.position > 0
    assert torch.equal(one.next(7).soft, other.next(7).soft)
    small = DistilledStream(small_stream(), Counted([ticking()]), memory=0)
    with pytest.raises(ValueError, match="memory must hold the predictions, as where this place was saved"):
        small.load_state_dict(place)


def test_a_place_that_a_version_without_kept_predictions_saved(short_windows):
    one, other = DistilledStream(small_stream(), Counted([ticking()]), memory=0), None
    for _ in range(3):
        one.next(5)
    place = one.state_dict()
    del place["kept"]
    other = DistilledStream(small_stream(), Counted([ticking()]))
    other.load_state_dict(place)
    near(other.next(6).soft, whole_epoch(small_stream())[15:21])
    assert other.state_dict()["teachers"] is None


@pytest.mark.parametrize("advance", [0, 5, 23])
def test_predictions_are_of_the_streams_own_steps(short_windows, advance):
    """Also where it was read before, or beside, or no teacher was asked at first."""
    expected = whole_epoch(small_stream())
    inner = small_stream()
    if advance:
        inner.next(advance)
    stream = DistilledStream(inner, Distillation([ticking()]))
    near(stream.next(3).soft, expected[advance : advance + 3])
    stream.distillation.weight = 0.0
    assert stream.next(4).soft is None
    inner.next(2)
    stream.distillation.weight = 0.5
    near(stream.next(3).soft, expected[advance + 9 : advance + 12])


def test_the_rows_of_a_rank_are_those_of_the_whole(short_windows):
    whole = DistilledStream(small_stream(), Distillation([ticking()]))
    parts = [DistilledStream(small_stream(), Distillation([ticking()])).share(rank, 2) for rank in (0, 1)]
    for steps in (4, 9, None, 5):
        expected, found = whole.next(steps), [part.next(steps) for part in parts]
        torch.testing.assert_close(
            torch.cat([one.soft for one in found], 1), expected.soft, rtol=2**-10, atol=2**-24
        )
        assert torch.equal(torch.cat([one.x for one in found], 1), expected.x)
    assert parts[0].state_dict() == whole.state_dict()


def test_teachers_that_change_are_asked_each_time(short_windows):
    made = Counted([ticking()], fixed=False)
    stream = DistilledStream(small_stream(), made)
    for _ in range(3):
        stream.next(None)
    assert made.asked_at == 3 * stream.stream.epoch_steps
    made = Counted([ticking()])
    stream = DistilledStream(small_stream(), made)
    before = stream.next(None).soft
    made.temperature = 4.0
    assert not torch.equal(before, stream.next(None).soft)
    # Label smoothing keeps nothing: it is exact.
    smooth = DistilledStream(small_stream(), Distillation([Uniform(SYMBOLS)])).next(3).soft
    assert torch.equal(smooth, torch.full_like(smooth, 1 / SYMBOLS))
    with pytest.raises(TypeError, match="fixed must be True or False; got 1"):
        Distillation([ticking()], fixed=1)


def test_teachers_are_asked_at_every_step_where_predictions_need_more_than_the_memory():
    least = 2 * small_stream().epoch_steps * 4 * SYMBOLS
    for memory, kept in ((least, True), (least - 1, False)):
        made = Counted([ticking()])
        stream = DistilledStream(small_stream(), made, memory)
        for _ in range(3):
            stream.next(2)
        assert made.asked_at == 1 + (stream.stream.epoch_steps if kept else 3 * 2)
    with pytest.raises(ValueError, match="memory must be an int of at least 0; got -1"):
        DistilledStream(small_stream(), made, -1)


def test_what_does_not_repeat_has_no_start_to_go_back_to():
    assert Recall().epoch_steps is None
    with pytest.raises(NotImplementedError, match="the epochs of Recall are not one sequence"):
        Recall().from_start()
    stream = small_stream()
    stream.next(5)
    again, fresh = stream.from_start(), small_stream()
    assert torch.equal(again.next(9).x, fresh.next(9).x)
    assert stream.state_dict() == {"position": 5, "epoch": 0}


def test_of_teachers_who_are_not_asked_there_is_nothing_to_keep():
    class Silent(Distillation):
        def asked(self):
            return [False] * len(self.teachers)

    stream = DistilledStream(small_stream(), Silent([ticking()]))
    assert stream.next(3).soft is None and stream.kept is None
