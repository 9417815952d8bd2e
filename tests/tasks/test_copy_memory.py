"""copy-memory: what a sequence looks like, what it costs without memory, and that it is learned."""

import math
import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.tasks import copy_memory
from dnirnn.tasks.copy_memory import CopyMemoryOptions, CopyMemoryStream
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer

blanks = st.integers(1, 15)


@given(blanks=blanks, rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_sequence_is_ten_symbols_a_wait_a_request_and_the_symbols_again(blanks, rows, seed):
    batch = CopyMemoryStream(rows, blanks, seed).next(None)
    assert batch.first and batch.final and batch.x.shape == (blanks + 20, rows, 10)
    assert bool((batch.x.sum(-1) == 1).all()) and batch.count() == rows * (blanks + 20)
    x = batch.x.argmax(-1)
    told, wait, after = x[:10], x[10 : 9 + blanks], x[10 + blanks :]
    assert bool((told < 8).all()) and bool((wait == 8).all()) and bool((after == 8).all())
    assert len(wait) == blanks - 1 and len(after) == 10 and bool((x[9 + blanks] == 9).all())
    assert bool((batch.y[:-10] == 8).all()) and torch.equal(batch.y[-10:], told)


@given(blanks=blanks)
def test_without_memory_it_costs_the_baseline(blanks):
    """Of whoever says blank, then all eight alike, on any sequence."""
    batch = CopyMemoryStream(3, blanks, blanks).next(None)
    logits = torch.full((blanks + 20, 3, 9), -100.0, dtype=torch.float64)
    logits[:-10, :, 8] = 100
    logits[-10:, :, :8] = 0
    found = copy_memory.sums(logits, batch)["nats"]
    assert found.tolist() == pytest.approx(3 * [copy_memory.baseline(blanks)])
    assert copy_memory.baseline(blanks) == pytest.approx(10 * math.log(8) / (blanks + 20))
    right = torch.nn.functional.one_hot(batch.y, 9).double() * 100
    assert copy_memory.sums(right, batch)["recalled"].tolist() == [1, 1, 1]


@given(blanks=blanks, steps=st.integers(1, 9), before=st.integers(0, 9), seed=st.integers(0, 9))
def test_a_stream_resumes_anywhere_to_the_bit(blanks, steps, before, seed):
    one, other = CopyMemoryStream(3, blanks, seed), CopyMemoryStream(3, blanks, seed + 1)
    for _ in range(before):
        one.next(steps)
    other.load_state_dict(one.state_dict())
    for _ in range(6):
        expected, found = one.next(steps), other.next(steps)
        assert torch.equal(expected.x, found.x) and torch.equal(expected.y, found.y)
        assert expected[3:5] == found[3:5] and one.epochs == other.epochs


def test_it_is_learned(tmp_path):
    """By a layer that recurs from twelve steps back, where each symbol was when it is to be said."""
    options = CopyMemoryOptions(
        core="dilated", dilations=(12,), blanks=2, hidden=48, truncation=22, estimator="none", lr=2e-2,
        updates=250, evaluate_every=10**8,
    )  # fmt: skip
    task = copy_memory.build(options)
    assert task.symbols_per_update == 32 * 22
    config = trainer_config(options, task.symbols_per_update, copy_memory.DECAY)
    arguments = (task.model, task.stream, config, tmp_path, task.evaluate, task.config)
    found = Trainer(*arguments, task.test).run()["test"]
    assert found["test_recalled"] > 0.9 and found["test_nats"] < 0.3 * copy_memory.baseline(2)


def test_trains_resumes_and_is_measured(tmp_path, capsys):
    words = "--blanks 5 --hidden 6 --batch 4 --truncation 5 --evaluate-every 400 --log-every 100 --quiet"
    for name, updates in (("run", "7"), ("run", "12"), ("whole", "12")):
        folder = str(tmp_path / name)
        assert main(["train", "copy-memory", "--out", folder, *words.split(), "--updates", updates]) == 0
    said = capsys.readouterr().out
    assert re.search(r"test, nats per step: \d\.\d{5}; test, symbols recalled: \d\.\d{3}", said), said
    assert "5 blank steps; without memory it is 0.83178 nats per step (10 log 8 / (T + 20))" in said
    one, other = (read_log(tmp_path / name / "log.jsonl", "valid")[-1] for name in ("run", "whole"))
    assert (one["nats"], one["recalled"]) == (other["nats"], other["recalled"])
    assert main(["eval", folder]) == 0
    assert re.search(r"nats per step: \d\.\d{5}; symbols recalled", capsys.readouterr().out)
    assert main(["fidelity", folder]) == 0


def test_bad_input(capsys):
    refused(capsys, ["train", "copy-memory", "--blanks", "0"], "--blanks must be at least 1; got 0")
