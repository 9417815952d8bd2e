"""Plan: truncations and chunks an update that follow one another; logged by symbols, and resumed."""

import pytest
import torch
from command_line import refused
from small_runs import assert_equal_runs, make_model, make_trainer, rows_of, small_stream

from dnirnn import TrueGradient
from dnirnn.commands import fidelity
from dnirnn.commands.cli import main
from dnirnn.interface import backward
from dnirnn.training.config import TrainerConfig
from dnirnn.training.trainer import Interrupted

PLANNED = dict(truncation_plan=(5, 2), chunks_plan=(3,), updates=12)


def test_each_share_of_the_budget_has_its_truncation_and_chunks(tmp_path):
    """12 updates: 4 each of 3, 5, 2 steps a chunk, 6 each of 1 and 3 chunks. A row has 51 steps."""
    trainer = make_trainer(tmp_path, **PLANNED, log_every=1)
    lengths, units = [], []
    step = trainer.updater.__call__

    class Watched:
        def __getattr__(self, name):
            return getattr(trainer_updater, name)

        def __setattr__(self, name, value):
            setattr(trainer_updater, name, value)

        def __call__(self, batch, state, t):
            lengths.append((trainer.model.truncated.truncation, len(batch.x)))
            units.append(trainer_updater.unit)
            return step(batch, state, t)

    trainer_updater, trainer.updater = trainer.updater, Watched()
    trainer.run()
    assert lengths == [(3, 3)] * 4 + [(5, 5)] * 2 + [(5, 15), (5, 14)] + [(2, 6)] * 4
    assert units == [1 / 12] * 4 + [1 / 20] * 2 + [1 / 60] * 2 + [1 / 24] * 4
    assert trainer.model.truncated.truncation == 3


def test_an_update_is_what_it_would_be_without_a_plan(tmp_path):
    """Plain SGD, by hand: the gradient of the mean loss of as many steps, cut as planned."""
    config = dict(optimizer="SGD", lr=0.5, clip=None, evaluate=None, **PLANNED)
    trainer = make_trainer(tmp_path, model=make_model("none"), **config)
    trainer.run()
    model, stream = make_model("none"), small_stream()
    state, t, first = model.initial_state(4), 0, True
    for truncation, steps in [(3, 3)] * 4 + [(5, 5)] * 2 + [(5, 15)] * 2 + [(2, 6)] * 4:
        model.truncated.truncation, batch = truncation, stream.next(steps)
        if batch.first and not first:
            state, t = model.initial_state(4), 0
        first = False
        nats, state, cuts = model(batch, state, t)
        backward(nats.sum() / (4 * steps), cuts, unit=1 / (4 * steps))
        t += len(batch.x)
        with torch.no_grad():
            for parameter in model.core_parameters():
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
    for ours, theirs in zip(trainer.model.core_parameters(), model.core_parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_due_is_due_by_symbols(tmp_path):
    def symbols(log_every):
        folder = tmp_path / str(log_every)
        make_trainer(folder, **PLANNED, log_every=log_every, evaluate=None).run()
        return [row["symbols"] for row in rows_of(folder) if row["kind"] == "train"]

    every = symbols(1)
    assert len(every) == 12
    expected = [now for before, now in zip([0, *every], every) if now // 40 > before // 40]
    # The end of a run has a row of its own.
    assert symbols(40) == sorted({*expected, every[-1]})


@pytest.mark.parametrize(
    "counted", [dict(truncation_plan=(4,)), dict(chunks_plan=(2,)), dict(truncation_bound=0.1)]
)
def test_what_is_counted_in_symbols_has_defaults_in_symbols(counted):
    plain, config = TrainerConfig(updates=9), TrainerConfig(updates=9, **counted)
    assert (plain.evaluate_every, plain.log_every) == (1000, 100)
    assert (config.evaluate_every, config.log_every) == (500_000, 25_600)
    given = TrainerConfig(updates=9, evaluate_every=70, log_every=30, **counted)
    assert (given.evaluate_every, given.log_every) == (70, 30)


@pytest.mark.parametrize("at", [3, 5, 7, 10])
def test_an_interrupted_run_goes_on_as_planned(at, tmp_path):
    make_trainer(tmp_path / "whole", **PLANNED).run()
    trainer = make_trainer(tmp_path / "run", **PLANNED)
    learn = trainer.learn

    def interrupted():
        learn()
        if trainer.update == at:
            trainer.interrupt()

    trainer.learn = interrupted
    with pytest.raises(Interrupted):
        trainer.run()
    make_trainer(tmp_path / "run", **PLANNED).run()
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "config, match",
    [
        (dict(truncation_plan=(5,), patience=1), "a plan follows a budget: updates, symbols or minutes"),
        (dict(chunks_plan=(2,), chunks="sequence", updates=1), "chunks_plan does not go with chunks of a"),
        (dict(truncation_plan=(5,), truncation_bound=0.1, updates=1), "truncation_plan does not go with"),
        (dict(truncation_plan=(5,), updates=1, true=True), "does not go with a TrueGradient, whose"),
        (dict(truncation_plan=(0,), updates=1), "truncation_plan must be at least 1"),
        (dict(chunks_plan=(1.5,), updates=1), "chunks_plan must be"),
    ],
)
def test_what_does_not_go_with_a_plan_is_named(config, match, tmp_path):
    model = make_model("none")
    if config.pop("true", False):
        model.truncated.estimator = TrueGradient(lookahead=2)
    with pytest.raises(ValueError, match=match):
        make_trainer(tmp_path, model=model, **config)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    words = "train copy --hidden 4 --batch 2 --max-length 2 --truncation 1 --updates 6".split()
    words += ["--truncation-plan", "4", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "gradients carried back 1, then 4, then 2 steps" in capsys.readouterr().out
    assert main(["eval", str(tmp_path)]) == 0 == main(["horizon", str(tmp_path), "--lookahead", "8"])
    (own,) = [line for line in capsys.readouterr().out.splitlines() if "this run's" in line]
    assert own.split()[0] == "2"
    met, measure = [], fidelity.measure

    def measured(model, *given):
        met.append(model.truncated.truncation)
        return measure(model, *given)

    monkeypatch.setattr(fidelity, "measure", measured)
    assert main(["fidelity", str(tmp_path)]) == 0 and met == [2]
    for more, match in (
        (["--truncation", "auto", "--estimator", "none"], "--truncation-plan must be"),
        (["--truncation-plan", "0"], "--truncation-plan must be at least 1"),
        (["--update-steps", "sequence", "--chunks-plan", "2"], "chunks_plan does not go with"),
        (["--update-steps", "2", "--auxiliary", "0.5", "--chunks-plan", "1"], "below 2"),
    ):
        refused(capsys, [*words[:-2], "--out", str(tmp_path / "other"), *more], match)


def test_what_a_task_needs_it_needs_of_the_longest_update(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("abcd" * 100)
    words = ["train", "char-lm", "--corpus", str(text), "--batch", "4", "--truncation", "10"]
    words += ["--updates", "2", "--out", str(tmp_path / "run"), "--hidden", "4"]
    refused(capsys, [*words, "--update-steps", "20", "--truncation-plan", "50"], "4 sequences of 100 steps")
    words = ["train", "digits", "--estimator", "none", "--cuts", "messages", "--period", "3"]
    words += ["--truncation", "9", "--updates", "2", "--out", str(tmp_path / "digits")]
    refused(capsys, [*words, "--truncation-plan", "3"], "all must be below --period squared, or none")
