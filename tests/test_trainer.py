"""The trainer against loops written out by hand, and what stops it."""

import copy
import dataclasses
import fcntl
import json
import math
import os
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import (  # noqa: F401
    Recall,
    make_model,
    make_trainer,
    one_thread,
    rows_of,
    small_stream,
    text,
)
from torch import nn

from dnirnn import TrueGradient, Truncated, true_gradients
from dnirnn.data import TextStream
from dnirnn.files import StorageError
from dnirnn.model import measure
from dnirnn.training.checkpoint import CheckpointError, checkpoints, load
from dnirnn.training.log import read_log
from dnirnn.training.trainer import NonFinite, Trainer, TrainerConfig, load_weights, read_config

PLAIN = dict(optimizer="SGD", estimator_optimizer="SGD", lr=0.1, estimator_lr=0.1, clip=None)


def train(folder, **config):
    trainer = make_trainer(folder, evaluate=config.pop("evaluate", None), **config)
    trainer.run()
    return trainer


def assert_same_weights(one, other, **tolerance):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text: f"{name}: {text}", **tolerance)


# What an update is


def by_hand(model, stream, chunks, updates):
    """Truncated BPTT in plain torch with nn.LSTM: detached at every cut, SGD without clipping."""
    lstm = nn.LSTM(4, 5).double()
    lstm.load_state_dict(model.truncated.core.state_dict())
    encoder, readout = copy.deepcopy(model.encoder), copy.deepcopy(model.readout)
    parameters = [*encoder.parameters(), *lstm.parameters(), *readout.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    truncation = model.truncated.truncation
    steps = None if chunks == "sequence" else truncation * chunks
    for _ in range(updates):
        batch = stream.next(steps)
        if batch.first:
            state = None
        optimizer.zero_grad()
        weight = torch.ones(batch.y.shape) if batch.weight is None else batch.weight
        chunked = (part.split(truncation) for part in (batch.x, batch.y, weight))
        for x, y, counts in zip(*chunked):
            output, state = lstm(encoder(x), state)
            logits = readout(output).transpose(1, 2)
            loss = nn.CrossEntropyLoss(reduction="none")(logits, y) * counts
            (loss.sum() / (stream.batch_size * (steps or 1))).backward()
            state = tuple(part.detach() for part in state)
        optimizer.step()
    return encoder, lstm, readout


def oracle_trainer(folder, stream, chunks, lookahead=None, discount=1.0) -> Trainer:
    """One that looks ahead, in float64, whose optimiser keeps the weights and the gradients."""
    model = make_model("none").double()
    oracle = TrueGradient(lookahead, discount=discount)
    model.truncated = Truncated(model.truncated.core, 3, oracle)
    config = dict(chunks=chunks, updates=1, clip=None)
    trainer = make_trainer(folder, model=model, stream=stream, evaluate=None, **config)
    trainer.found = []
    trainer.optimizer.step = lambda: trainer.found.append([p.grad.clone() for p in trainer.core])
    return trainer


@pytest.mark.parametrize("chunks", [1, 2, "sequence"])
@pytest.mark.parametrize("make_stream", [small_stream, Recall])
def test_with_the_end_in_sight_updates_add_up_to_full_backpropagation(
    tmp_path, chunks, make_stream
):
    trainer, whole = oracle_trainer(tmp_path, make_stream(), chunks), make_stream().next(None)
    for _ in range(1 if chunks == "sequence" else math.ceil(len(whole.x) / (3 * chunks))):
        trainer.learn()
    assert trainer.t == len(whole.x)
    expected = make_model("none").double()
    expected.truncated.truncation = len(whole.x)
    nats, _, _ = expected(whole, expected.initial_state(4))
    (nats.sum() * trainer.updater.unit).backward()
    for name, found in zip(dict(expected.named_parameters()), zip(*trainer.found), strict=True):
        true = expected.get_parameter(name).grad
        torch.testing.assert_close(sum(found), true, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("lookahead", [1, 3])
def test_looking_ahead_leaves_the_stream_where_it_is(tmp_path, lookahead):
    """What is told are the gradients of so many chunks from each cut, whatever is in the call."""
    trainer, stream = oracle_trainer(tmp_path, small_stream(), 2, lookahead, 0.5), small_stream()
    model, state, t = trainer.model, None, 0
    for _ in range(12):
        trainer.learn()
        batch = stream.next(6)
        if batch.first:
            state, t = model.initial_state(4), 0
        after = small_stream()
        after.load_state_dict(stream.state_dict())
        ahead = batch if batch.final else batch.then(after.next(3 * lookahead))
        told = model.truncated.estimator.told
        nats, _, (cut,) = model(ahead, state, t)
        true = true_gradients(nats.sum(), cut, lookahead, 0.5)
        torch.testing.assert_close(told, true)
        state, t = cut.sent[-(-len(batch.x) // 3) - 1].detach(), t + len(batch.x)
        assert trainer.stream.state_dict() == stream.state_dict()
        torch.testing.assert_close(trainer.state, state)


@pytest.mark.parametrize("config, dropout, says", [
    (dict(), 0.1, "dropout must be 0 with TrueGradient, .*got 0.1"),
    (dict(micro_batch=2), 0.0, "micro_batch must be None with TrueGradient, .*got 2"),
    (dict(warm_up=2), 0.0, "warm_up, .*need an estimator that is fitted"),
])  # fmt: skip
def test_what_can_not_be_foreseen_is_refused(tmp_path, config, dropout, says):
    model = make_model("none", dropout=dropout)
    model.truncated.estimator = TrueGradient()
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path, model=model, updates=1, **config)


@pytest.mark.parametrize("chunks", [1, 4, "sequence"])
@pytest.mark.parametrize("make_stream", [small_stream, Recall])
def test_updates_are_those_of_a_loop_by_hand(tmp_path, chunks, make_stream):
    """Per chunk, per four chunks, per sequence; over sequences' ends, with short last chunks."""
    model, streams = make_model("none").double(), [make_stream(), make_stream()]
    streams[1].observe = lambda bits: None
    expected = by_hand(model, streams[0], chunks, updates=25)
    train(tmp_path, model=model, stream=streams[1], chunks=chunks, updates=25, **PLAIN)
    for part, other in zip((model.encoder, model.truncated.core, model.readout), expected):
        assert_same_weights(part, other)


@pytest.mark.parametrize(("chunks", "updates"), [(1, 17), (4, 5), (20, 1), ("sequence", 1)])
def test_an_epoch_has_as_many_updates_as_its_chunks_ask_for(tmp_path, chunks, updates):
    """203 symbols in 4 rows are 51 steps: 17 chunks of 3."""
    trainer = train(tmp_path, chunks=chunks, symbols=203)
    assert (trainer.update, trainer.symbols, trainer.stream.epochs) == (updates, 203, 1)


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from(["none", "dni"]), st.booleans())
def test_pieces_add_up_to_the_whole_batch(tmp_path_factory, size, estimator, recall):
    found = []
    for micro_batch in (None, size):
        model = make_model(estimator).double()
        stream = Recall(12) if recall else TextStream(text(301), 12, 0)
        options = dict(micro_batch=micro_batch, chunks=2, updates=20) | PLAIN
        folder = tmp_path_factory.mktemp("run")
        found.append(train(folder, model=model, stream=stream, **options))
    assert_same_weights(found[0].model, found[1].model)
    torch.testing.assert_close(found[0].state, found[1].state)
    for row, other in zip(*(rows_of(trainer.folder) for trainer in found), strict=True):
        assert row == pytest.approx(other)


def test_the_state_goes_on_from_update_to_update_and_starts_anew_with_a_sequence(tmp_path):
    trainer = make_trainer(tmp_path, updates=40, evaluate=None)
    seen, run = [], trainer.model.forward
    initial = trainer.model.initial_state(4)

    def forward(batch, state, t0):
        nats, ended, interfaces = run(batch, state, t0)
        seen.append((batch.first, state.clone(), t0, ended, len(batch.x)))
        return nats, ended, interfaces

    trainer.model.forward = forward
    trainer.run()
    assert [first for first, *_ in seen].count(True) == 3
    for before, (first, state, t0, *_) in zip([None, *seen], seen):
        if first:
            assert torch.equal(state, initial) and t0 == 0
        else:
            assert torch.equal(state, before[3]) and t0 == before[2] + before[4]


def test_a_fresh_estimator_s_first_update_is_that_of_plain_truncation(tmp_path):
    models = [make_model("none"), make_model("dni")]
    nn.init.zeros_(models[1].truncated.estimator.layers[-1].weight)
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    for number, model in enumerate(models):
        train(tmp_path / str(number), model=model, updates=1, chunks=3)
    for a, b in zip(*(model.core_parameters() for model in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", ["core", "estimator"])
def test_clipping_bounds_each_part_s_own_step(tmp_path, part):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    largest = {"core": "clip", "estimator": "estimator_clip"}[part]
    trainer = train(tmp_path, model=model, updates=1, **(PLAIN | {largest: 1e-3}))
    moved = {"core": 0.0, "estimator": 0.0}
    for name, value in trainer.model.state_dict().items():
        kind = "estimator" if "estimator" in name else "core"
        moved[kind] += (value - before[name]).double().square().sum().item()
    other = "estimator" if part == "core" else "core"
    assert math.sqrt(moved[part]) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert math.sqrt(moved[other]) > 0.1 * 2e-3


def test_adam_is_fused_and_each_part_has_its_own_rate(tmp_path):
    trainer = make_trainer(tmp_path, updates=1, lr=0.3, estimator_lr=0.2, options={"eps": 1e-6})
    core, estimator = (optimizer.param_groups[0] for optimizer in trainer.optimizers)
    assert core["fused"] and estimator["fused"]
    assert (core["lr"], core["eps"], estimator["lr"], estimator["eps"]) == (0.3, 1e-6, 0.2, 1e-8)
    assert len(make_trainer(tmp_path, model=make_model("none"), updates=1).optimizers) == 1


# Schedules, early stopping, the log


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


# What is not finite


class Root(torch.autograd.Function):
    """A value that is finite and a gradient that is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def spoil(trainer, what, at):
    model, forward = trainer.model, trainer.model.forward

    def spoiled(batch, state, t0):
        nats, ended, interfaces = forward(batch, state, t0)
        if trainer.update == at:
            if what == "loss":
                nats = nats * math.nan
            elif what == "core gradient":
                nats = Root.apply(nats)
            else:
                cut = interfaces[0]
                interfaces = [cut._replace(entered=torch.full_like(cut.entered, math.inf))]
        return nats, ended, interfaces

    model.forward = spoiled


@pytest.mark.parametrize("what", ["loss", "core gradient", "estimator gradient"])
def test_what_is_not_finite_stops_before_anything_is_updated(tmp_path, what):
    def trainer_of(folder, updates):
        model = make_model(dropout=0.3)
        return make_trainer(
            tmp_path / folder, model=model, stream=Recall(), updates=updates, evaluate=None
        )

    trainer = trainer_of("run", 20)
    spoil(trainer, what, at=9)
    says = rf"update 10: the {what} is (nan|inf), in the window of \d steps from step \d+"
    with pytest.raises(NonFinite, match=says) as stop:
        trainer.run()
    assert (stop.value.update, stop.value.what) == (10, what)
    good = trainer_of("good", 9)
    good.run()
    saved = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert saved.name == "update-00000009" and str(saved) in str(stop.value)
    (tensors, state), (expected, wanted) = load(saved), load(good.checkpoint_folder)
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert (state["stream"], state["t"]) == (wanted["stream"], wanted["t"])
    # And where nothing spoils it, it goes on.
    assert trainer_of("run", 20).run()["update"] == 20


def test_validation_bits_that_are_not_finite_stop(tmp_path):
    with pytest.raises(NonFinite, match="update 4: the validation bits are nan"):
        train(tmp_path, updates=9, evaluate_every=4, evaluate=lambda model: {"bits": math.nan})


# Bad input and what was there before


def test_an_evaluation_without_bits_is_refused(tmp_path):
    with pytest.raises(ValueError, match='evaluate must return a dict with "bits"; got {}'):
        train(tmp_path, updates=1, evaluate=lambda model: {})


def snapshot(folder):
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


def test_another_configuration_is_refused_by_the_keys_that_differ(tmp_path):
    make_trainer(tmp_path, updates=5).run()
    before = snapshot(tmp_path)
    says = r"clip \(1.0 there, 2.0 here\), updates \(5 there, 6 here\)"
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path, updates=6, clip=2.0)
    with pytest.raises(ValueError, match=r"options.eps \('not given' there, 0.1 here\)"):
        make_trainer(tmp_path, updates=5, options={"eps": 0.1})
    assert snapshot(tmp_path) == before
    assert read_config(tmp_path)["updates"] == 5


def test_another_model_is_refused_and_nothing_is_touched(tmp_path):
    make_trainer(tmp_path, updates=5).run()
    before, model = snapshot(tmp_path), make_model(hidden=6)
    weights = copy.deepcopy(model.state_dict())
    for attempt in (lambda: make_trainer(tmp_path, model=model, updates=5).run(),
                    lambda: load_weights(tmp_path, model)):  # fmt: skip
        with pytest.raises(CheckpointError, match="is of another model: .*weight_ih_l0"):
            attempt()
    assert snapshot(tmp_path) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_offered(tmp_path):
    config = dict(updates=9, checkpoint_every=4)
    expected = make_trainer(tmp_path, **config).run()
    last = checkpoints(tmp_path / "checkpoints")[-1]
    file = last / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    before = snapshot(tmp_path)
    says = f"{last} is damaged: .* without that folder, the run goes on from update-00000008"
    with pytest.raises(CheckpointError, match=says):
        make_trainer(tmp_path, **config).run()
    assert snapshot(tmp_path) == before
    for part in last.iterdir():
        part.unlink()
    last.rmdir()
    again = make_trainer(tmp_path, **config).run()
    assert again | {"seconds": 0} == expected | {"seconds": 0}


@pytest.mark.parametrize("call", [1, 3, 9, 12])
def test_a_full_disk_stops_with_the_last_checkpoint_whole(tmp_path, monkeypatch, call):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= call:
            raise OSError(28, os.strerror(28))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="could not be written: no space left on the disk"):
        make_trainer(tmp_path / "run", updates=9, checkpoint_every=2).run()
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob(".*"))
    for saved in checkpoints(tmp_path / "run" / "checkpoints"):
        load(saved)
    make_trainer(tmp_path / "run", updates=9, checkpoint_every=2).run()


def test_a_folder_that_can_t_be_made_costs_no_work(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        trainer = make_trainer(folder, updates=9)
        with pytest.raises(StorageError, match=f"{folder} could not be written"):
            trainer.run()
        assert trainer.update == 0


def test_a_run_folder_without_its_configuration_is_refused(tmp_path):
    make_trainer(tmp_path, updates=1).run()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        make_trainer(tmp_path, updates=1)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="holds a run but no config.json"):
        make_trainer(tmp_path, updates=1)
    with pytest.raises(ValueError, match="is not a run folder"):
        read_config(tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ValueError, match="is in use: another process trains there"):
            make_trainer(tmp_path, updates=1).run()
    finally:
        os.close(descriptor)
    make_trainer(tmp_path, updates=1).run()


def test_loading_from_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_weights(tmp_path, make_model())
    with pytest.raises(ValueError, match='which must be "best" or "latest"'):
        load_weights(tmp_path, make_model(), "first")
    make_trainer(tmp_path, updates=3, evaluate=None).run()
    assert load_weights(tmp_path, make_model(), "best")["update"] == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, 0) for name in ("updates", "chunks", "micro_batch", "log_every", "patience")],
        *[(name, -1) for name in ("minutes", "symbols", "lr", "estimator_lr")],
        *[("checkpoint_seconds", -1), ("decay", "slowly")],
        *[("updates", 1.5), ("chunks", "all"), ("evaluate_every", True), ("clip", 0)],
        *[("clip", math.nan), ("lr", "fast"), ("estimator_clip", 0.0), ("checkpoint_every", 0)],
    ],
)
def test_a_setting_that_does_not_fit_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} must be .*; got {value!r}"):
        dataclasses.replace(TrainerConfig(updates=1), **{field: value})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dict(micro_batch=3), "micro_batch must divide the batch size 4; got 3"),
        (dict(optimizer="Eve"), "^optimizer must be the name of a class in torch.optim.*'Eve'"),
        (dict(estimator_optimizer="LBFGS"), "^estimator_optimizer must be .*'LBFGS'"),
        (dict(options={"speed": 1}), "^options do not fit Adam: .*speed"),
        (dict(estimator_options={"betas": [2, 2]}), "^estimator_options do not fit Adam: .*beta"),
        (dict(schedule="Later"), "schedule must be the name of .*'Later'"),
        (dict(schedule="LambdaLR"), "schedule must be the name of .*'LambdaLR'"),
        (dict(schedule="StepLR"), "schedule_options do not fit StepLR"),
        (dict(schedule_options={"gamma": 1}), "schedule_options need a schedule"),
        (dict(schedule="ReduceLROnPlateau", evaluate=None), "needs evaluations"),
        (dict(patience=2, evaluate=None), "patience counts evaluations"),
        (dict(updates=None), "one of updates, minutes, symbols or patience"),
    ],
)
def test_what_does_not_fit_together_is_named_before_anything_is_made(tmp_path, config, says):
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path / "run", **{"updates": 1, **config})
    assert not (tmp_path / "run").exists()


def test_training_learns(tmp_path):
    """A text that repeats is all but certain in the end."""
    symbols = torch.arange(5).repeat(60)
    for estimator in ("none", "dni"):
        model = make_model(estimator, hidden=16)
        if estimator == "dni":
            nn.init.zeros_(model.truncated.estimator.layers[-1].weight)
        stream = TextStream(symbols, 4, 4)
        held_out = TextStream(symbols, 2, 4)
        result = make_trainer(
            tmp_path / estimator,
            model=model,
            stream=stream,
            updates=300,
            evaluate=lambda model, held_out=held_out: measure(model, held_out),
        ).run()
        assert result["best"]["bits"] < 0.1
