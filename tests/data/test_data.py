"""Streams and vocabularies."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from small_runs import Recall

from dnirnn.data import Batch, TextStream, Vocabulary
from dnirnn.data import streams as source

sizes = st.integers(1, 9)


def epoch_of(stream, steps) -> list[Batch]:
    """The batches to the epoch's end; ``steps`` is gone through again and again."""
    batches = []
    while not batches or not batches[-1].final:
        batches.append(stream.next(steps[len(batches) % len(steps)]))
    return batches


@given(st.integers(1, 120), sizes, st.lists(st.none() | st.integers(1, 40), min_size=1))
def test_every_symbol_is_a_target_once_an_epoch_from_the_one_before_it(length, rows, steps):
    assume(length >= rows)
    stream = TextStream(torch.arange(length), rows, first_input=length)
    for epoch in range(2):
        assert stream.epochs == epoch
        batches = epoch_of(stream, steps)
        x, y = (torch.cat([batch[i] for batch in batches]) for i in range(2))
        weight = torch.cat(
            [torch.ones(b.x.shape) if b.weight is None else b.weight for b in batches]
        )
        counted = weight == 1
        assert bool(((weight == 0) | counted).all())
        assert y[counted].sort().values.tolist() == list(range(length))
        assert torch.equal(x[counted], (y[counted] - 1) % (length + 1))
        assert torch.equal(x[1:], y[:-1])
        # A row is one stretch of the text, no row is more than one step shorter than another.
        lengths = counted.sum(0)
        assert lengths.max() - lengths.min() <= 1
        assert [batch.first for batch in batches] == [True] + [False] * (len(batches) - 1)


@given(st.integers(9, 90), sizes, st.integers(1, 12), st.integers(0, 12))
def test_a_stream_goes_on_from_where_its_state_was_taken(length, rows, steps, taken_after):
    streams = [TextStream(torch.arange(length), rows, 0) for _ in range(2)]
    for _ in range(taken_after):
        streams[0].next(steps)
    streams[1].load_state_dict(streams[0].state_dict())
    assert streams[0].epochs == streams[1].epochs
    for _ in range(4):
        one, other = (stream.next(steps) for stream in streams)
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)
        assert one[3:5] == other[3:5]
        assert (one.following is None) == one.final == (other.following is None)
        for part in () if one.final else ("x", "y"):
            assert torch.equal(getattr(one.following, part), getattr(other.following, part))


@given(st.integers(9, 90), sizes, st.integers(1, 12))
def test_what_follows_a_batch_is_the_next_one_s_first_step(length, rows, steps):
    stream = TextStream(torch.arange(length), rows, 0)
    batches = epoch_of(stream, [steps])
    for batch, after in zip(batches, batches[1:]):
        first = after.steps(0, 1)
        assert torch.equal(batch.following.x, first.x) and torch.equal(batch.following.y, first.y)
        if len(after.x) == 1 and after.weight is not None:
            assert torch.equal(batch.following.weight, first.weight)
        else:
            assert batch.following.weight is None
    assert batches[-1].following is None


@given(sizes, sizes, st.lists(st.integers(1, 8)), st.booleans(), st.integers(0, 9))
def test_pieces_one_after_the_other_are_the_whole(length, rows, cuts, weighted, seed):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.rand(length, rows, generator=draw) if weighted else None
    x, label = torch.rand(length, rows, 2, generator=draw), torch.rand(rows, 3, generator=draw)
    whole = Batch(x, 2 * x, weight, True, True, label=label)
    cuts = sorted({0, length, *(cut for cut in cuts if cut < length)})
    pieces = [whole.piece(*ends) for ends in zip(cuts, cuts[1:])]
    joined = pieces[0]
    for piece in pieces[1:]:
        assert torch.equal(joined.following.x, piece.x[:1]) and not joined.final
        joined = joined.then(piece)
    for one, other in zip(joined, whole):
        assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other


def test_a_batch_all_of_which_counts_goes_on_in_one_of_which_a_part_does():
    first = Batch(torch.zeros(2, 3), torch.zeros(2, 3), None, True)
    after = Batch(torch.zeros(1, 3), torch.zeros(1, 3), torch.tensor([[0.0, 1, 0]]), final=True)
    both = first.then(after)
    assert both.weight.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 0]]
    assert both.first and both.final and first.then(first).weight is None


def test_rows_of_a_batch_are_rows_of_all_its_parts():
    whole = Batch(torch.rand(4, 3, 2), torch.rand(4, 3), torch.rand(4, 3), label=torch.rand(3, 1))
    part = whole.piece(1, 3)
    row = part.rows(1, 2)
    for one, other in ((row, part), (row.following, part.following)):
        for name in ("x", "y", "weight"):
            assert torch.equal(getattr(one, name), getattr(other, name)[:, 1:2])
        assert torch.equal(one.label, other.label[1:2])
    assert part.to(torch.device("cpu")) is part
    there = part.to(torch.device("meta"))
    assert there.label.device == there.following.weight.device == torch.device("meta")


def test_the_stream_of_the_tests_goes_on_too():
    streams = [Recall(seed=0), Recall(seed=5)]
    for _ in range(7):
        streams[0].next(2)
    streams[1].load_state_dict(streams[0].state_dict())
    for _ in range(7):
        one, other = (stream.next(2) for stream in streams)
        assert torch.equal(one.x, other.x) and one[3:5] == other[3:5]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.arange(3), 4, 0), ValueError, "symbols must hold .* batch_size=4 rows; got 3"),
        ((torch.arange(0), 1, 0), ValueError, "symbols must hold"),
        ((torch.arange(3), 0, 0), ValueError, "batch_size must be an int of at least 1; got 0"),
        ((torch.arange(3), 1.0, 0), ValueError, "batch_size must be .* got 1.0"),
        ((torch.zeros(3), 1, 0), TypeError, "symbols must be a LongTensor"),
        ((torch.zeros(3, 2, dtype=torch.long), 1, 0), TypeError, "symbols must be a LongTensor"),
        ((torch.arange(3), 1, -1), ValueError, "first_input must be a symbol.* got -1"),
        ((torch.arange(3), 1, "a"), ValueError, "first_input must be a symbol.* got 'a'"),
        (("text", 1, 0), TypeError, "symbols must be a LongTensor .* got str"),
    ],
)
def test_a_text_that_does_not_fit_is_named(arguments, error, says):
    with pytest.raises(error, match=says):
        TextStream(*arguments)


def test_a_place_beyond_the_text_is_refused():
    stream = TextStream(torch.arange(8), 2, 0)
    with pytest.raises(ValueError, match="position must be in this text's 4 steps; got 4"):
        stream.load_state_dict({"position": 4, "epoch": 0})


def test_less_than_a_step_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, or None; got 0"):
        TextStream(torch.arange(8), 2, 0).next(0)


def test_rows_of_a_batch():
    x, weight = torch.arange(6).view(2, 3), torch.tensor([[1.0, 1, 1], [1, 0, 1]])
    piece = Batch(x, x + 1, weight, True, False).rows(1, 3)
    assert piece.x.tolist() == [[1, 2], [4, 5]] and piece.y.tolist() == [[2, 3], [5, 6]]
    assert piece.weight.tolist() == [[1, 1], [0, 1]] and piece[3:5] == (True, False)


@given(st.text(min_size=1), st.data())
def test_a_vocabulary_gives_back_what_it_encoded(text, data):
    vocabulary = Vocabulary.of(text)
    assert "\n" in vocabulary.characters and set(text) <= set(vocabulary.characters)
    again = Vocabulary.from_json(vocabulary.to_json())
    for some in (text, data.draw(st.text(vocabulary.characters))):
        symbols = vocabulary.encode(some)
        assert symbols.dtype == torch.long and len(symbols) == len(some)
        assert vocabulary.decode(symbols) == some
        assert torch.equal(symbols, again.encode(some))


@given(st.text("ab\n"), st.characters(exclude_characters="ab\n"), st.text())
def test_an_unknown_character_is_named_with_its_place(before, unknown, after):
    with pytest.raises(ValueError) as error:
        Vocabulary("ab\n").encode(before + unknown + after)
    line = before.count("\n") + 1
    assert f"{unknown!r} at offset {len(before)} (line {line})" in str(error.value)


def test_a_vocabulary_needs_distinct_characters():
    for characters in ("", "aa"):
        with pytest.raises(ValueError, match="characters must be distinct"):
            Vocabulary(characters)
    with pytest.raises(ValueError, match="text must not be empty"):
        Vocabulary.of("")


@given(
    st.integers(5, 90),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([torch.uint8, torch.uint16, torch.int32]),
)
def test_small_symbols_laid_out_in_stretches_are_the_whole_text_of_long_ones(
    length, rows, steps, block, dtype
):
    symbols = torch.arange(length) + (60_000 if dtype == torch.uint16 else 0)
    with pytest.MonkeyPatch.context() as patch:
        streams = [TextStream(symbols.to(kind), rows, 7) for kind in (torch.long, dtype)]
        for _ in range(2 * length):
            patch.setattr(source, "BLOCK", 2**22)
            one = streams[0].next(steps)
            patch.setattr(source, "BLOCK", block)
            other = streams[1].next(steps)
            assert other.x.dtype == torch.long
            assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)
            assert (one.following is None) == (other.following is None)
            if one.following is not None:
                assert torch.equal(one.following.y, other.following.y)


def test_a_symbol_stands_for_the_unknown_where_that_is_asked_for():
    vocabulary = Vocabulary("ab\n", unknown=True)
    assert len(vocabulary) == 4 and vocabulary.unknown == 3
    symbols = vocabulary.encode("a\U0001f600b\x00")
    assert symbols.tolist() == [0, 3, 1, 3] and vocabulary.decode(symbols) == "a\ufffdb\ufffd"
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.unknown == 3 and again.characters == "ab\n"


@pytest.mark.parametrize("size, dtype", [(3, "uint8"), (256, "uint8"), (257, "uint16"),
                                         (65_536, "uint16"), (65_537, "int32")])  # fmt: skip
def test_symbols_take_as_few_bytes_as_hold_them(size, dtype):
    characters = "".join(map(chr, range(0x10000, 0x10000 + size)))
    assert Vocabulary(characters).dtype == dtype
