"""repeat-copy: what a sequence looks like, how it grows, what is said of a run."""

import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.tasks import repeat_copy
from dnirnn.tasks.bit_sequences import RECENT, random_bits
from dnirnn.tasks.repeat_copy import RepeatCopyOptions, RepeatCopyStream
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer

sizes = st.integers(1, 6)


@given(length=sizes, repeats=sizes, rows=sizes, bits=sizes, seed=st.integers(0, 9))
def test_a_sequence_is_vectors_and_their_count_then_they_so_often_and_an_end(
    length, repeats, rows, bits, seed
):
    given_bits = random_bits((length, rows, bits), torch.Generator().manual_seed(seed))
    batch = repeat_copy.lay_out(given_bits, repeats)
    said = repeats * length
    delimiter, vectors, count, silence = batch.x.split([1, length, 1, said + 1])
    assert len(batch.x) == (repeats + 1) * length + 3
    assert torch.equal(vectors[..., :bits], given_bits) and not vectors[..., bits:].any()
    for step, channel, value in ((delimiter, bits, 1.0), (count, bits + 1, repeats / 10)):
        expected = torch.zeros(1, rows, bits + 2)
        expected[..., channel] = value
        assert torch.equal(step, expected)
    assert not silence.any()
    copies, end = batch.y[length + 2 :].split([said, 1])
    for part in copies.split(length):
        assert torch.equal(part[..., :bits], given_bits) and not part[..., bits].any()
    assert bool((end[..., bits] == 1).all()) and not end[..., :bits].any()
    assert not batch.weight[: length + 2].any() and bool((batch.weight[length + 2 :] == 1).all())


def grown(**options) -> list[tuple[int, int, int, int]]:
    """(N, R, and what they are worth) of every stage."""
    stream = RepeatCopyStream(RepeatCopyOptions(batch=1, bits=1, **options))
    found = []
    for stage in range(stream.stage, stream.stages + 1):
        assert stream.stage == stage
        sequence = stream.next(None)
        for _ in range(RECENT):
            stream.observe(0.0)
        figures = stream.figures
        assert len(sequence.x) == figures["solved_steps"]
        assert sequence.weight.sum() == figures["solved"] + 1
        found.append(tuple(figures.values()))
    return found


def test_length_and_repeats_grow_in_turn():
    steps = [steps for _, steps in grown(max_length=8, max_repeats=7)]
    # Those of the paper's table are among them: 7, 19, 23, 33, 39, 59, 67.
    assert steps == [5, 7, 9, 12, 15, 19, 23, 28, 33, 39, 45, 52, 59, 67]


@pytest.mark.parametrize("options, products", [
    (dict(max_length=4, max_repeats=2), [1, 2, 4, 6, 8]),
    (dict(max_length=2, max_repeats=4), [1, 2, 4, 6, 8]),
    (dict(start_length=3, max_length=5, max_repeats=3), [3, 4, 8, 10, 15]),
    (dict(start_repeats=3, max_length=3, max_repeats=4), [3, 6, 8, 12]),
    (dict(max_length=1, max_repeats=1), [1]),
], ids=str)  # fmt: skip
def test_one_grows_alone_where_the_other_is_at_its_largest(options, products):
    assert [product for product, _ in grown(**options)] == products


def test_trains_resumes_and_is_measured(tmp_path, capsys):
    words = "--bits 1 --hidden 8 --batch 4 --truncation 3 --max-length 3 --max-repeats 2".split()
    words += "--decay none --fidelity-every 40 --evaluate-every 40 --log-every 10 --quiet".split()
    for name, updates in (("run", "15"), ("run", "40"), ("whole", "40")):
        folder = str(tmp_path / name)
        assert main(["train", "repeat-copy", "--out", folder, *words, "--updates", updates]) == 0
    said = capsys.readouterr().out
    assert "largest length times repeats solved: 0.0; steps of the largest sequence" in said
    assert "vectors of 1 bits, lengths 1 to 3, repeats 1 to 2" in said
    one, other = (
        [row["bits"] for row in read_log(tmp_path / name / "log.jsonl", "train")][-2:]
        for name in ("run", "whole")
    )
    assert one == other
    assert read_log(tmp_path / "run" / "log.jsonl", "fidelity")
    assert main(["eval", folder]) == 0
    said = capsys.readouterr().out
    assert re.search(r"bits per bit:\n {9}1 {5}2\n( +\d \d\.\d{3} \d\.\d{3}\n){3}", said), said
    assert main(["fidelity", folder]) == 0


def test_eval_says_the_largest_that_is_solved(monkeypatch):
    errors = iter([[0.0, 0.1, 0.2], [0.3, 0.05, 0.3], [0.1, 0.3, 0.3]])
    monkeypatch.setattr(repeat_copy, "measure", lambda model, batches: next(errors))
    lines = repeat_copy.evaluate(dict(bits=1, max_length=3, max_repeats=3), None)
    assert lines[0] == "largest length times repeats solved: 4, 2 vectors 2 times in 9 steps"
    assert lines[-2].split() == ["3", "0.100", "0.300", "0.300"]


def test_it_is_compared(tmp_path, capsys):
    words = "--bits 1 --hidden 4 --batch 2 --updates 3 --truncations 2 --estimators none --quiet".split()
    assert main(["compare", "repeat-copy", "--out", str(tmp_path), *words]) == 0
    said = capsys.readouterr().out
    assert "1 runs of repeat-copy" in said and "largest length times repeats solved" in said


def test_it_learns_to_repeat(tmp_path):
    options = RepeatCopyOptions(
        bits=1, hidden=32, truncation=4, lr=1e-2, batch=16, updates=600, max_length=4,
        estimator_hidden=("linear",), evaluate_every=10**6, seed=1,
    )  # fmt: skip
    task = repeat_copy.build(options)
    config = trainer_config(options, task.symbols_per_update, repeat_copy.DECAY)
    arguments = (task.model, task.stream, config, tmp_path / "run", task.evaluate, task.config)
    result = Trainer(*arguments, task.test).run()
    assert result["test"]["solved"] >= 2


def test_bad_input(capsys):
    words = ["train", "repeat-copy", "--start-repeats", "3", "--max-repeats", "2"]
    refused(capsys, words, "--start-repeats must be at most --max-repeats 2; got 3")
    refused(capsys, ["train", "copy", "--max-repeats", "2"], "unrecognized arguments")
