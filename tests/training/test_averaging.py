"""Averaged weights, and a learning rate that rises before it falls."""

import math

import pytest
import torch
from small_runs import assert_equal_runs, make_model, make_trainer, rows_of, small_stream, text

from dnirnn.data import TextStream
from dnirnn.distributed import Ranks
from dnirnn.model import measure
from dnirnn.training.averaging import Average
from dnirnn.training.trainer import Interrupted, NonFinite, TrainerConfig, load_weights

HELD_OUT = TextStream(text(50, seed=2), 4, 0)


def weights_of(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.core_parameters()]


def followed(folder, every=1, **config):
    """(the trainer after its run, the weights before it and after each update)."""
    trainer = make_trainer(folder, **config)
    seen, before = [weights_of(trainer.model)], trainer.updater

    class Watched:
        bad, full = property(lambda self: before.bad), True

        def __call__(self, *given):
            found = before(*given)
            seen.append(weights_of(trainer.model))
            return found

        def __getattr__(self, name):
            return getattr(before, name)

    trainer.updater = Watched()
    trainer.run()
    return trainer, seen


def test_it_is_the_equation_and_what_is_evaluated_and_kept(tmp_path):
    trainer, seen = followed(tmp_path / "run", average=0.6, updates=30, evaluate_every=30)
    expected, *updates = seen
    for n, weights in enumerate(updates, 1):
        share = max(0.4, 9 / (9 + n))
        expected = [a + share * (p - a) for a, p in zip(expected, weights)]
    last = make_model()
    load_weights(tmp_path / "run", last, "latest")
    for model in (trainer.model, last):
        for found, value in zip(weights_of(model), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)
    row = rows_of(tmp_path / "run")[-1]
    assert row["bits"] == pytest.approx(measure(trainer.model, HELD_OUT, 16)["bits"], abs=1e-6)


def test_it_changes_nothing_of_the_training(tmp_path):
    make_trainer(tmp_path / "averaged", average=0.9, updates=20, evaluate_every=7).run()
    make_trainer(tmp_path / "plain", updates=20, evaluate_every=7).run()
    averaged, plain = (rows_of(tmp_path / name) for name in ("averaged", "plain"))
    rows = [[row for row in log if row["kind"] == "train"] for log in (averaged, plain)]
    assert rows[0] == rows[1] and averaged != plain


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = dict(average=0.8, updates=12, evaluate_every=5, lr_warm_up=4, decay="cosine")
    make_trainer(tmp_path / "whole", **config).run()
    first = make_trainer(tmp_path / "run", **config)
    first.prepare = lambda model, epochs: first.interrupt() if first.update == 6 else None
    with pytest.raises(Interrupted):
        first.run()
    make_trainer(tmp_path / "run", **config).run()
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_without_an_evaluation_the_average_is_what_is_left(tmp_path):
    trainer = make_trainer(tmp_path, average=0.9, updates=5, evaluate=False)
    trainer.run()
    for found, value in zip(weights_of(trainer.model), trainer.training.average.values, strict=True):
        assert torch.equal(found, value)


def test_an_update_that_is_not_finite_is_not_averaged(tmp_path):
    model = make_model()
    trainer = make_trainer(tmp_path, model=model, average=0.9, updates=9)

    def spoil(model, epochs):
        if trainer.update == 4:
            trainer.known = [value.clone() for value in trainer.training.average.values]
            model.loss = lambda logits, y: logits.sum(-1) * math.nan

    trainer.prepare = spoil
    with pytest.raises(NonFinite):
        trainer.run()
    for found, value in zip(trainer.training.average.values, trainer.known, strict=True):
        assert torch.equal(found, value)


def test_a_device_that_decides_itself_skips_it_likewise():
    parameter = torch.nn.Parameter(torch.ones(3))
    average = Average([parameter], 0.5)
    with torch.no_grad():
        parameter.add_(1)
    average.update(1, torch.ones(()))
    assert torch.equal(average.values[0], torch.ones(3))
    average.update(1, torch.zeros(()))
    torch.testing.assert_close(average.values[0], torch.full((3,), 1.9))


@pytest.mark.parametrize("decay", [None, "linear"])
def test_the_rate_rises_by_equal_steps_and_then_is_what_it_is(tmp_path, decay):
    config = dict(lr=0.5, lr_warm_up=4, decay=decay, updates=10, log_every=1, evaluate=False)
    make_trainer(tmp_path, stream=small_stream(), **config).run()
    rates = [row["lr"] for row in rows_of(tmp_path)]
    falls = [1 - n / 10 if decay else 1 for n in range(10)]
    expected = [0.5 * min(1, (n + 1) / 5) * fall for n, fall in enumerate(falls)]
    assert rates == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(average=1.0), "average must be below 1; got 1.0"),
        (dict(lr_warm_up=-1), "lr_warm_up must be at least 0; got -1"),
        (dict(lr_warm_up=5, schedule="ConstantLR"), "lr_warm_up and schedule can't both drive lr"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(updates=1, **given)
    parts = type("Parts", (Ranks,), dict(lockstep=False))()
    with pytest.raises(ValueError, match="average must be None where ranks hold parts of a network"):
        make_trainer("nowhere", ranks=parts, updates=1, average=0.9)
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\)"):
        Average([], 0.0)
