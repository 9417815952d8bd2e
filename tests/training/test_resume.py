"""The resume law: a run that was killed and resumed is bit for bit the one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
import torch
from small_runs import (
    Recall,
    assert_equal_runs,
    kill_points,
    make_model,
    make_trainer,
    rows_of,
    small_stream,
)

from dnirnn.training.checkpoint import checkpoints
from dnirnn.training.trainer import Interrupted


class Killed(BaseException):
    """Stands for the end of a process, inside this one."""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory) -> Path:
    """The runs of small_runs.main, one process that forks a child for each life of a run."""
    folder = tmp_path_factory.mktemp("killed")
    program = Path(small_runs.__file__)
    paths = [path for path in sys.path if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, str(program), str(folder)], check=True, env=environment)
    return folder


@pytest.mark.parametrize("number", range(len(kill_points())))
def test_killed_and_resumed_is_the_uninterrupted_run(killed_runs, number):
    run = killed_runs / f"trial-{number}"
    signals = json.loads((run / "signals.json").read_text())
    assert signals == [signal.SIGKILL] * len(kill_points()[number])
    assert_equal_runs(run, killed_runs / "reference")
    left = [path.name for path in run.rglob(".*")]
    assert not left
    runs = (run, killed_runs / "reference")
    results = [json.loads((folder / "result.json").read_text()) for folder in runs]
    for result in results:
        result.pop("seconds")
    assert results[0] == results[1]


def run_with_a_break(folder, after, **config):
    """A run that ends without notice after ``after`` updates, and is resumed."""

    def trainer():
        stream = config.get("stream", small_stream)()
        model = make_model(config.get("estimator", "dni"), dropout=config.get("dropout", 0.0))
        rest = {k: v for k, v in config.items() if k not in ("stream", "estimator", "dropout")}
        return make_trainer(folder, model=model, stream=stream, **rest)

    broken = trainer()
    learn = broken.learn

    def learn_or_die():
        if broken.update == after:
            raise Killed
        learn()

    broken.learn = learn_or_die
    if after is not None:
        with pytest.raises(Killed):
            broken.run()
    return trainer().run()


CASES = {
    "adam": dict(),
    "momentum": dict(optimizer="SGD", options={"momentum": 0.9, "nesterov": True}),
    "adamw, amsgrad": dict(optimizer="AdamW", options={"amsgrad": True, "fused": False}),
    "rmsprop": dict(optimizer="RMSprop", estimator_optimizer="Adagrad"),
    "nadam": dict(optimizer="NAdam", estimator_optimizer="Rprop"),
    "one cycle": dict(
        schedule="OneCycleLR", schedule_options={"max_lr": 0.02, "total_steps": 12}
    ),
    "milestones": dict(schedule="MultiStepLR", schedule_options={"milestones": [4, 9]}),
    "restarts": dict(schedule="CosineAnnealingWarmRestarts", schedule_options={"T_0": 3}),
    "decay": dict(decay="cosine"),
    "plateau": dict(schedule="ReduceLROnPlateau", schedule_options={"patience": 0, "factor": 0.5}),
    "cyclic": dict(schedule="CyclicLR", schedule_options={"base_lr": 0.001, "max_lr": 0.01}),
    "truncated only": dict(estimator="none"),
    "least squares": dict(estimator="least-squares"),
    "four chunks": dict(chunks=4),
    "sequences": dict(chunks="sequence", stream=Recall),
    "pieces": dict(micro_batch=2, dropout=0.3),
    "two epochs": dict(chunks=6),
}


@pytest.mark.parametrize("name", CASES)
def test_resumed_equals_uninterrupted(tmp_path, name):
    config = dict(updates=12, evaluate_every=3, checkpoint_every=2, log_every=4) | CASES[name]
    if name == "cyclic":
        config |= dict(optimizer="SGD", options={"momentum": 0.9})
    whole = run_with_a_break(tmp_path / "whole", None, **config)
    resumed = run_with_a_break(tmp_path / "resumed", 7, **config)
    assert_equal_runs(tmp_path / "resumed", tmp_path / "whole")
    assert whole | {"seconds": 0} == resumed | {"seconds": 0}


def test_the_rows_after_the_checkpoint_are_cut(tmp_path):
    config = dict(updates=12, evaluate_every=None, checkpoint_every=5, log_every=1)
    run_with_a_break(tmp_path / "resumed", 9, **config)
    updates = [row["update"] for row in rows_of(tmp_path / "resumed") if row["kind"] == "train"]
    assert updates == list(range(1, 13))


def test_ctrl_c_finishes_the_update_saves_and_says_so(tmp_path):
    def press(trainer, at):
        learn = trainer.learn

        def learn_and_press():
            if trainer.update == at:
                os.kill(os.getpid(), signal.SIGINT)
            learn()

        trainer.learn = learn_and_press

    make_trainer(tmp_path / "whole", updates=12).run()
    before = signal.getsignal(signal.SIGINT)
    for at in (3, 7):
        trainer = make_trainer(tmp_path / "pressed", updates=12)
        press(trainer, at)
        with pytest.raises(Interrupted, match=rf"update {at + 1} \({12 * (at + 1)} symbols.*saved"):
            trainer.run()
        assert signal.getsignal(signal.SIGINT) is before
        saved = checkpoints(tmp_path / "pressed" / "checkpoints")
        assert saved[-1].name == f"update-{at + 1:08d}"
    make_trainer(tmp_path / "pressed", updates=12).run()
    assert_equal_runs(tmp_path / "pressed", tmp_path / "whole")


def test_a_best_model_that_no_checkpoint_knows_is_made_anew(tmp_path):
    """Killed between the best model and the checkpoint that names it."""
    trainer = make_trainer(tmp_path / "run", updates=8, evaluate_every=4)
    save = trainer.save

    def save_or_die():
        if trainer.update:
            raise Killed
        save()

    trainer.save = save_or_die
    with pytest.raises(Killed):
        trainer.run()
    assert [path.name for path in checkpoints(tmp_path / "run" / "best")] == ["update-00000004"]
    make_trainer(tmp_path / "run", updates=8, evaluate_every=4).run()
    make_trainer(tmp_path / "whole", updates=8, evaluate_every=4).run()
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_is_done_returns_its_result_again(tmp_path):
    calls = []
    test = lambda model: calls.append(1) or {"bits": 1.0}  # noqa: E731
    first = make_trainer(tmp_path, updates=5, test=test).run()
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert make_trainer(tmp_path, updates=5, test=test).run() == first
    assert contents == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(calls) == 1


def test_another_number_of_threads_is_told(tmp_path):
    threads = torch.get_num_threads()
    make_trainer(tmp_path, updates=5, checkpoint_every=2).run()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"began with {threads} threads"):
            make_trainer(tmp_path, updates=5, checkpoint_every=2).run()
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **options):
        raise AssertionError("unpickled")

    make_trainer(tmp_path, updates=5, checkpoint_every=3).run()
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    make_trainer(tmp_path, updates=5, checkpoint_every=3).run()
