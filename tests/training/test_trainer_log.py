"""Schedules, early stopping, and what the log of a run says."""

import copy
import json
import math
import time

import pytest
import torch
from small_runs import PLAIN, Recall, make_model, make_trainer, rows_of, train

from dnirnn.training.log import read_log
from dnirnn.training.trainer import load_weights


def test_a_schedule_drives_the_core_s_rate_once_an_update(tmp_path):
    options = dict(schedule="ExponentialLR", schedule_options={"gamma": 0.9}, log_every=1)
    trainer = train(tmp_path, updates=5, lr=0.5, **options)
    rates = [row["lr"] for row in rows_of(tmp_path)]
    assert rates == pytest.approx([0.5 * 0.9**n for n in range(1, 6)])
    assert trainer.optimizers[1].param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize(
    ("decay", "left"),
    [
        ("linear", [1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 1 / 2, (2 - math.sqrt(2)) / 4]),
    ],
)
def test_decay_follows_the_budget_that_is_used_up_most(tmp_path, decay, left):
    # An update is 4 rows of 3 symbols: 48 symbols are four updates, of the eight allowed.
    trainer = train(tmp_path, updates=8, symbols=48, lr=0.5, decay=decay, log_every=1)
    rates = [row["lr"] for row in rows_of(tmp_path)]
    assert rates == pytest.approx([0.5 * share for share in left])
    assert trainer.optimizers[1].param_groups[0]["lr"] == 0.01


def test_plateaus_are_of_the_evaluations(tmp_path):
    bits = iter([3.0, 2.0, 2.0, 1.0, 1.0])
    options = dict(schedule="ReduceLROnPlateau", schedule_options={"patience": 0, "factor": 0.5})
    trainer = train(
        tmp_path, updates=10, evaluate_every=2, evaluate=lambda m: {"bits": next(bits)}, **options
    )
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.25)


def test_patience_stops_and_the_best_model_is_the_one_that_is_left(tmp_path):
    bits = iter([3.0, 2.0, 2.5, 2.0, 2.1])
    weights = []

    def evaluate(model):
        assert not model.training and not torch.is_grad_enabled()
        weights.append(copy.deepcopy(model.state_dict()))
        return {"bits": next(bits), "other": 1}

    tested = []
    trainer = make_trainer(
        tmp_path,
        updates=100,
        evaluate_every=2,
        patience=3,
        evaluate=evaluate,
        test=lambda model: tested.append(copy.deepcopy(model.state_dict())) or {"bits": 1.5},
    )
    result = trainer.run()
    assert (result["stopped"], result["update"]) == ("patience", 10)
    assert result["best"] == {"update": 4, "symbols": 48, "bits": 2.0, "other": 1}
    assert result["test"] == {"bits": 1.5}
    assert json.loads((tmp_path / "result.json").read_text()) == result
    for found in (tested[0], trainer.model.state_dict()):
        assert all(torch.equal(found[name], value) for name, value in weights[1].items())
    valid = [row["bits"] for row in rows_of(tmp_path) if row["kind"] == "valid"]
    assert valid == [3.0, 2.0, 2.5, 2.0, 2.1]
    for which, expected in (("best", weights[1]), ("latest", weights[-1])):
        model = make_model(seed=9)
        known = load_weights(tmp_path, model, which)
        assert known["update"] == {"best": 4, "latest": 10}[which]
        assert all(torch.equal(model.state_dict()[name], v) for name, v in expected.items())
    assert load_weights(tmp_path, model)["bits"] == 2.0


@pytest.mark.parametrize(
    ("budget", "update"), [({"updates": 7}, 7), ({"symbols": 25}, 3), ({"minutes": 1e-9}, 1)]
)
def test_the_first_budget_reached_ends_the_run_with_an_evaluation(tmp_path, budget, update):
    result = make_trainer(tmp_path, **({"updates": 1000} | budget)).run()
    assert (result["stopped"], result["update"]) == (*budget, update)
    assert [row["update"] for row in read_log(tmp_path / "log.jsonl", "valid")] == [update]


def test_an_evaluation_says_how_often_the_text_was_seen(tmp_path):
    """Rows of 51 symbols, 3 of each an update."""
    make_trainer(tmp_path, updates=9, evaluate_every=4).run()
    rows = read_log(tmp_path / "log.jsonl", "valid")
    assert [row["epochs"] for row in rows] == pytest.approx([12 / 51, 24 / 51, 27 / 51])


def test_rows_say_the_means_since_the_row_before(tmp_path):
    reported = []
    make_trainer(tmp_path / "some", updates=10, evaluate_every=7).run(reported.append)
    make_trainer(tmp_path / "all", updates=10, log_every=1, evaluate=None).run()
    some, every = (read_log(tmp_path / run / "log.jsonl") for run in ("some", "all"))
    assert some == reported
    train_rows = [row for row in some if row["kind"] == "train"]
    assert [(row["kind"], row["update"]) for row in some] == [
        *[("train", 4), ("train", 7), ("valid", 7), ("train", 8), ("train", 10), ("valid", 10)]
    ]
    before = 0
    for row in train_rows:
        between = every[before : row["update"]]
        for name in ("bits", "estimator_error", "gradient_norm"):
            mean = sum(other[name] for other in between) / len(between)
            assert row[name] == pytest.approx(mean)
        assert row["symbols"] == 12 * row["update"] and row["seconds"] > 0
        before = row["update"]
    seconds = [row["seconds"] for row in some]
    assert seconds == sorted(seconds)


def test_the_seconds_leave_out_evaluating_and_saving(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def evaluate(model):
        now[0] += 1000
        return {"bits": 1.0}

    trainer = make_trainer(tmp_path, updates=6, evaluate=evaluate, evaluate_every=2, log_every=2)
    add, save = trainer.updater.add_gradients, trainer.save

    def slow_gradients(*arguments):
        now[0] += 2
        return add(*arguments)

    def slow_save():
        now[0] += 1000
        save()

    trainer.updater.add_gradients, trainer.save = slow_gradients, slow_save
    assert trainer.run()["seconds"] == 12
    rows = read_log(tmp_path / "log.jsonl", "train")
    assert [row["seconds"] for row in rows] == [4, 8, 12]
    assert [row["symbols_per_second"] for row in rows] == [6, 6, 6]


def test_a_stream_is_told_the_bits_of_every_sequence(tmp_path):
    told = []
    for chunks in (1, "sequence"):
        stream = Recall()
        stream.observe = told.append
        model = make_model("none")
        options = dict(PLAIN) | dict(lr=1e-12, chunks=chunks, symbols=200)
        train(tmp_path / str(chunks), model=model, stream=stream, **options)
    half = len(told) // 2
    assert half > 5 and told[:half] == pytest.approx(told[half:], rel=1e-4)
    stream = Recall()
    for bits in told[:half]:
        batch = stream.next(None)
        nats = model(batch, model.initial_state(4))[0].sum().item()
        assert bits == pytest.approx(nats / batch.weight.sum().item() / math.log(2), rel=1e-4)


def test_tensorboard_has_the_rows(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer(tmp_path, updates=8, tensorboard=True).run()
    board = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = read_log(tmp_path / "log.jsonl")
    for kind in ("train", "valid"):
        scalars = [(event.step, event.value) for event in board.Scalars(f"{kind}/bits")]
        of_kind = [(row["update"], row["bits"]) for row in rows if row["kind"] == kind]
        assert scalars == [(step, pytest.approx(bits)) for step, bits in of_kind]
