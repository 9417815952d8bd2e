"""adding: what a sequence looks like, its error, and that it learns."""

import math
import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.data import Batch
from dnirnn.model import squared_error
from dnirnn.tasks import adding
from dnirnn.tasks.adding import AddingOptions, AddingStream
from dnirnn.tasks.measured import VALIDATION
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer

lengths = st.integers(2, 12)


@given(length=lengths, rows=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_sequence_is_numbers_two_of_them_marked_and_their_sum(length, rows, seed):
    batch = AddingStream(rows, length, seed).next(None)
    assert batch.first and batch.final and batch.x.shape == (length, rows, 2)
    numbers, marks = batch.x.unbind(-1)
    assert bool((0 <= numbers).all()) and bool((numbers < 1).all())
    for row in range(rows):
        first, second = marks[:, row].nonzero().flatten().tolist()
        assert first < length // 2 <= second and marks[:, row].sum() == 2
        total = float(numbers[first, row] + numbers[second, row])
        assert float(batch.y[-1, row]) == float(batch.label[row]) == pytest.approx(total)
    assert batch.weight.sum() == rows and bool((batch.weight[-1] == 1).all())


def test_numbers_and_places_are_drawn_evenly():
    x = AddingStream(4000, 5, 0).next(None).x
    assert float(x[..., 0].mean()) == pytest.approx(0.5, abs=0.01)
    share = x[..., 1].mean(1)
    assert share.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


@given(length=lengths, steps=st.integers(1, 9), before=st.integers(0, 9), seed=st.integers(0, 9))
def test_a_stream_resumes_anywhere_to_the_bit(length, steps, before, seed):
    one, other = AddingStream(3, length, seed), AddingStream(3, length, seed + 1)
    for _ in range(before):
        one.next(steps)
    other.load_state_dict(one.state_dict())
    for _ in range(6):
        expected, found = one.next(steps), other.next(steps)
        assert torch.equal(expected.x, found.x) and torch.equal(expected.y, found.y)
        assert expected[3:5] == found[3:5] and torch.equal(expected.label, found.label)
        assert one.epochs == other.epochs


class Always(torch.nn.Module):
    """A core whose output is a number, whatever it reads."""

    def __init__(self, number: float):
        super().__init__()
        self.number = number

    def forward(self, x, state, t):
        return torch.full((*x.shape[:2], 1), self.number), state


def test_what_the_notice_says_of_saying_1(monkeypatch):
    options = AddingOptions(length=4, hidden=4)
    model = adding.make(options)
    monkeypatch.setattr(model.truncated, "core", Always(1.0))
    monkeypatch.setattr(model, "readout", torch.nn.Identity())
    monkeypatch.setattr(model, "initial_state", lambda rows: torch.zeros(rows, 1))
    found = adding.measure(model, [AddingStream(200_000, 4, 0).next(None)], adding.sums)
    assert found == pytest.approx(dict(error=0.1667, within=0.078), abs=2e-3)
    assert "error of 0.1667, and is within 0.04 for 0.078" in adding.notice(options)


def test_the_error_is_that_of_the_loss_the_trainer_sees():
    """Whose unit is a sequence's own loss: only its last step's."""
    options = AddingOptions(length=6, hidden=8, truncation=3, update_steps=6)
    task = adding.build(options)
    (batch,) = adding.fresh(options, VALIDATION)
    with torch.no_grad():
        nats, _, _ = task.model(batch, task.model.initial_state(adding.TESTED))
    assert not nats[:-1].any()
    found = task.evaluate(task.model)
    assert found["error"] == pytest.approx(float(nats[-1].mean()))
    assert found["bits"] == pytest.approx(float(nats[-1].mean()) / math.log(2))
    assert found["error"] != task.test(task.model)["test_error"]


def test_squared_error_sums_over_numbers():
    y = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    assert squared_error(torch.zeros(2, 1, 2), y).tolist() == [[5.0], [0.0]]


def test_it_learns_to_add(tmp_path):
    options = AddingOptions(
        length=10, hidden=32, truncation=5, lr=1e-2, updates=1200, evaluate_every=10**6
    )
    task = adding.build(options)
    config = trainer_config(options, task.symbols_per_update, adding.DECAY)
    arguments = (task.model, task.stream, config, tmp_path, task.evaluate, task.config)
    assert Trainer(*arguments, task.test).run()["test"]["test_error"] < 0.02


WORDS = "--length 12 --hidden 6 --batch 8 --truncation 4 --evaluate-every 40 --log-every 20 --quiet"


def test_trains_resumes_and_is_measured(tmp_path, capsys):
    words = [*WORDS.split(), *"--context target label --fidelity-every 40".split()]
    for name, updates in (("run", "21"), ("run", "60"), ("whole", "60")):
        folder = str(tmp_path / name)
        assert main(["train", "adding", "--out", folder, *words, "--updates", updates]) == 0
    said = capsys.readouterr().out
    assert re.search(r"160 sequences \(20\.00 batches of sequences\)", said), said
    assert re.search(r"test, mean squared error: 0\.\d{5}; test, within 0.04: 0\.\d{3}", said)
    assert "sequences of 12 steps; always saying 1" in said
    one, other = (read_log(tmp_path / name / "log.jsonl", "valid")[-1] for name in ("run", "whole"))
    assert (one["error"], one["within"]) == (other["error"], other["within"])
    assert read_log(tmp_path / "run" / "log.jsonl", "fidelity")
    assert main(["eval", folder]) == 0
    assert re.search(r"mean squared error: 0\.\d{5}; within 0.04: 0\.\d{3}", capsys.readouterr().out)
    assert main(["fidelity", folder]) == 0


def test_a_thousand_steps_are_trained_on(tmp_path, capsys):
    words = "--length 1000 --truncation 1000 --hidden 4 --batch 2 --updates 1 --quiet".split()
    assert main(["train", "adding", "--core", "skip", "--out", str(tmp_path / "run"), *words]) == 0
    said = capsys.readouterr().out
    assert "sequences of 1000 steps" in said and "share of the steps that update the state: 1.000" in said


def test_the_label_is_the_sum():
    options = AddingOptions(length=6, hidden=4, batch=3, context=("label", "target"))
    task = adding.build(options)
    assert task.model.truncated.estimator.context_size == 2
    batch = task.stream.next(4)
    told = task.model.context(batch, batch.x)
    assert torch.equal(told[..., 1], batch.label[:, 0].expand(5, 3)) and not told[..., 0].any()
    last: Batch = task.stream.next(4)
    told = task.model.context(last, last.x)
    assert torch.equal(told[1, :, 0], batch.label[:, 0]) and not told[2].any()


def test_bad_input(capsys):
    refused(capsys, ["train", "adding", "--length", "1"], "--length must be at least 2; got 1")
