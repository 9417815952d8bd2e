"""dyck: what a string looks like, what counts, what a guess costs, and that it is learned."""

import math
import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.tasks import dyck
from dnirnn.tasks.dyck import DyckOptions, DyckStream
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer

sizes = dict(half=st.integers(1, 8), kinds=st.integers(2, 4), depth=st.integers(1, 4), seed=st.integers(0, 99))


@given(**sizes)
def test_a_string_is_well_nested_and_what_closes_next_is_its_target(half, kinds, depth, seed):
    """By a stack, symbol by symbol."""
    batch = DyckStream(3, 2 * half, kinds, depth, seed).next(None)
    assert batch.first and batch.final and batch.x.shape == (2 * half, 3, 2 * kinds)
    assert bool((batch.x.sum(-1) == 1).all()) and batch.weight.sum(0).tolist() == [half] * 3
    symbols = batch.x.argmax(-1)
    for row in range(3):
        stack = []
        for t, symbol in enumerate(symbols[:, row].tolist()):
            if symbol < kinds:
                stack.append(symbol)
            else:
                assert float(batch.weight[t - 1, row]) == 1
                assert symbol - kinds == stack.pop() == int(batch.y[t - 1, row])
            assert len(stack) <= depth
        assert not stack


@given(steps=st.integers(1, 9), before=st.integers(0, 9), **sizes)
def test_a_stream_resumes_anywhere_to_the_bit(steps, before, half, kinds, depth, seed):
    one, other = (DyckStream(2, 2 * half, kinds, depth, seed + i) for i in range(2))
    for _ in range(before):
        one.next(steps)
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        expected, found = one.next(steps), other.next(steps)
        assert torch.equal(expected.x, found.x) and torch.equal(expected.y, found.y)
        assert expected.final == found.final and one.epochs == other.epochs


def test_all_depths_and_kinds_come_up():
    batch = DyckStream(2000, 12, 3, 3, 0).next(None)
    symbols = batch.x.argmax(-1)
    open_ = torch.where(symbols < 3, 1, -1).cumsum(0)
    assert open_.unique().tolist() == [0, 1, 2, 3]
    shares = symbols.flatten().bincount() / symbols.numel()
    assert shares.tolist() == pytest.approx([1 / 6] * 6, abs=0.01)
    assert float((symbols[1] < 3).double().mean()) == pytest.approx(0.5, abs=0.04)


def test_a_guess_costs_what_the_notice_says():
    options = DyckOptions(length=20, kinds=4)
    (batch,) = dyck.fresh(options, 0)
    found = {name: float(v.mean()) for name, v in dyck.sums(torch.zeros(20, dyck.TESTED, 4), batch).items()}
    assert found["nats"] == pytest.approx(math.log(4)) and found["right"] == pytest.approx(0.25, abs=0.02)
    assert "a guess costs 1.3863 nats, and is right for 0.250" in dyck.notice(options)


def test_the_loss_is_that_of_the_brackets_that_close():
    options = DyckOptions(length=6, hidden=8, truncation=3, update_steps=6)
    task = dyck.build(options)
    (batch,) = dyck.fresh(options, dyck.TEST)
    with torch.no_grad():
        nats, _, _ = task.model(batch, task.model.initial_state(dyck.TESTED))
    assert float(nats.sum(0).mean()) / 3 == pytest.approx(task.test(task.model)["test_nats"])
    assert task.symbols_per_update == options.batch * 3


def test_it_learns_which_bracket_is_open(tmp_path):
    options = DyckOptions(
        length=12, depth=3, hidden=32, truncation=12, estimator="none", lr=1e-2, updates=300,
        evaluate_every=10**6,
    )  # fmt: skip
    task = dyck.build(options)
    config = trainer_config(options, task.symbols_per_update, dyck.DECAY)
    arguments = (task.model, task.stream, config, tmp_path, task.evaluate, task.config)
    assert Trainer(*arguments, task.test).run()["test"]["test_right"] > 0.97


def test_trains_resumes_and_is_measured(tmp_path, capsys):
    words = "--length 8 --kinds 3 --depth 2 --hidden 6 --batch 8 --truncation 4 --quiet".split()
    words += "--context target --evaluate-every 400 --log-every 100".split()
    for name, updates in (("run", "11"), ("run", "40"), ("whole", "40")):
        folder = str(tmp_path / name)
        assert main(["train", "dyck", "--out", folder, *words, "--updates", updates]) == 0
    said = capsys.readouterr().out
    assert re.search(r"test, nats per closing bracket: \d\.\d{5}; test, share predicted right: [01]\.\d{4}", said)
    one, other = (read_log(tmp_path / name / "log.jsonl", "valid")[-1] for name in ("run", "whole"))
    assert (one["nats"], one["right"]) == (other["nats"], other["right"])
    assert main(["eval", folder]) == 0
    assert re.search(r"nats per closing bracket: \d\.\d{5}; predicted right", capsys.readouterr().out)


@pytest.mark.parametrize("words, message", [
    ("--length 7", "--length must be even"), ("--kinds 1", "--kinds must be at least 2"),
    ("--depth 0", "--depth must be at least 1"),
])  # fmt: skip
def test_bad_input(words, message, capsys, tmp_path):
    refused(capsys, ["train", "dyck", "--out", str(tmp_path / "run"), *words.split()], message)
