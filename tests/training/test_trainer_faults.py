"""What stops the trainer: what is not finite, bad input, and what was there before."""

import copy
import dataclasses
import fcntl
import math
import os

import pytest
import torch
from small_runs import Recall, make_model, make_trainer, train

from dnirnn.files import StorageError
from dnirnn.training.checkpoint import CheckpointError, checkpoints, load
from dnirnn.training.trainer import NonFinite, TrainerConfig, load_weights, read_config

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
                interfaces = [cut._replace(start=torch.full_like(cut.start, math.inf))]
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
        make_trainer(tmp_path, updates=5, optimizer_options={"eps": 0.1})
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
        *[("updates", 1.5), ("chunks", "all"), ("evaluate_every", True), ("clip", -1)],
        *[("clip", math.nan), ("lr", "fast"), ("estimator_clip", -0.5), ("checkpoint_every", 0)],
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
        (dict(optimizer_options={"speed": 1}), "^optimizer_options do not fit Adam: .*speed"),
        (
            dict(estimator_optimizer_options={"betas": [2, 2]}),
            "^estimator_optimizer_options do not fit Adam: .*beta",
        ),
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
