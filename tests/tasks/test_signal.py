"""signal: what is sampled when, what a guess costs, and that it is learned."""

import math
import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.tasks import signal
from dnirnn.tasks.measured import VALIDATION
from dnirnn.tasks.signal import SignalOptions, SignalStream
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer

SINES = ((5.0,), (4.0, 30.0), (3.0, 9.0, 27.0, 81.0, 243.0))
forms = st.builds(
    dict,
    goal=st.sampled_from(["continue", "tuned"]),
    sines=st.sampled_from(SINES),
    uneven=st.booleans(),
    length=st.integers(2, 20),
)


@given(form=forms, rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_times_never_decrease_and_even_ones_count_steps(form, rows, seed):
    options = SignalOptions(hidden=4, **form)
    batch = SignalStream(options, rows, seed).next(None)
    times, gaps = batch.times, batch.x[..., 1]
    assert times.dtype == torch.float64 and times.shape == batch.x.shape[:2]
    assert bool((times.diff(dim=0) >= 0).all()) and bool((times >= 0).all())
    assert bool((times <= options.length).all()) and not gaps[0].any()
    assert torch.equal(gaps[1:], times.diff(dim=0).float())
    if not options.uneven:
        assert torch.equal(times, torch.arange(options.length)[:, None].expand(-1, rows).double())


@given(form=forms, rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_what_is_given_and_what_is_asked(form, rows, seed):
    options = SignalOptions(hidden=4, **form)
    batch = SignalStream(options, rows, seed).next(None)
    value, given = batch.x[..., 0], batch.x[..., 3]
    assert batch.first and batch.final and not value[given == 0].any()
    if options.goal == "continue":
        assert torch.equal(batch.weight, 1 - given) and not given[options.length // 2 :].any()
        shown = given.bool()
        assert bool(shown[: options.length // 2].all())
        assert torch.equal(value[shown], batch.y[..., 0][shown])
        bound = math.sqrt(2 * len(options.sines)) + 1e-6
        assert bool((batch.y.abs() <= bound).all())
    else:
        assert bool(given.all()) and batch.count() == rows and bool(batch.weight[-1].all())
        assert batch.y.shape[-1] == len(options.sines) and torch.equal(batch.y[0], batch.label)


@given(sines=st.sampled_from(SINES), seed=st.integers(0, 99))
def test_the_signal_is_the_sum_of_its_sines(sines, seed):
    """So a linear fit of a sine and a cosine of each period to it leaves nothing."""
    options = SignalOptions(hidden=4, sines=sines, uneven=True, length=40)
    batch = SignalStream(options, 3, seed).next(None)
    for row in range(3):
        angles = 2 * math.pi * batch.times[:, row, None] / torch.tensor(sines, dtype=torch.float64)
        basis = torch.cat([angles.sin(), angles.cos()], 1)
        y = batch.y[:, row].double()
        left = y - basis @ torch.linalg.lstsq(basis, y).solution
        assert float(left.abs().max()) < 1e-5


def test_a_period_is_in_tune_or_clearly_not():
    options = SignalOptions(hidden=4, goal="tuned", sines=(8.0,))
    uniform = torch.rand(10_000, dtype=torch.float64)
    inside, outside = signal.near(uniform).exp(), signal.far(uniform).exp()
    assert 1 / 1.1 <= float(inside.min()) and float(inside.max()) <= 1.1
    outside = torch.maximum(outside, 1 / outside)
    assert 1.25 <= float(outside.min()) and float(outside.max()) <= 2
    label = SignalStream(options, 4000, 0).next(None).label
    assert float(label.mean()) == pytest.approx(0.5, abs=0.03)


def test_the_constant_predictor_has_the_error_that_the_notice_says():
    options = SignalOptions(hidden=4, sines=(7.0, 23.0))
    batch = SignalStream(options, 2000, 1).next(None)
    found = signal.sums(torch.zeros_like(batch.y), batch)["error"]
    assert float(found.mean()) == pytest.approx(1, abs=0.03)
    assert "always predicting 0 has a mean squared error of 1" in signal.notice(options)
    tuned = SignalOptions(hidden=4, sines=(7.0, 23.0), goal="tuned")
    batch = SignalStream(tuned, 2000, 1).next(None)
    found = signal.sums(torch.ones_like(batch.y), batch)
    assert float(found["error"].mean()) == pytest.approx(0.5, abs=0.03)
    right = signal.sums(20 * (2 * batch.y - 1), batch)
    assert not right["error"].any() and float(right["loss"].max()) < 1e-6


@given(form=forms, steps=st.integers(1, 9), before=st.integers(0, 9), seed=st.integers(0, 9))
def test_a_stream_resumes_anywhere_to_the_bit(form, steps, before, seed):
    options = SignalOptions(hidden=4, **form)
    one, other = SignalStream(options, 3, seed), SignalStream(options, 3, seed + 1)
    for _ in range(before):
        one.next(steps)
    other.load_state_dict(one.state_dict())
    for _ in range(6):
        expected, found = one.next(steps), other.next(steps)
        assert torch.equal(expected.x, found.x) and torch.equal(expected.y, found.y)
        assert torch.equal(expected.times, found.times) and expected[3:5] == found[3:5]


@pytest.mark.parametrize("core", ["phased", "lstm"])
def test_only_a_core_that_takes_times_is_given_them(core):
    options = SignalOptions(core=core, hidden=4, uneven=True, length=10, truncation=5)
    task = signal.build(options)
    (batch,) = signal.fresh(options, VALIDATION)
    start, moved = task.model.initial_state(signal.TESTED), batch._replace(times=batch.times + 0.4)
    task.model.eval()
    one, other = (task.model(each, start, 0)[0] for each in (batch, moved))
    assert torch.equal(one, other) is (core == "lstm")
    found = signal.measure(task.model, [batch], signal.sums)["error"]
    assert found == pytest.approx(float(one.detach().double().sum() / batch.weight.sum()), rel=1e-5)


def test_it_is_learned(tmp_path):
    options = SignalOptions(
        sines=(6.0,), length=24, hidden=24, truncation=24, estimator="none", lr=1e-2, updates=300,
        evaluate_every=10**8,
    )  # fmt: skip
    task = signal.build(options)
    config = trainer_config(options, task.symbols_per_update, signal.DECAY)
    found = Trainer(task.model, task.stream, config, tmp_path, task.evaluate, task.config, task.test).run()
    assert found["test"]["test_error"] < 0.1, found


@pytest.mark.parametrize("words", ["--goal tuned --sines 4 12 --context label", "--core clockwork"])
def test_trains_resumes_and_is_measured(tmp_path, capsys, words):
    words = [*words.split(), *"--uneven --length 12 --hidden 4 --batch 8 --truncation 4 --quiet".split()]
    words += "--evaluate-every 40 --log-every 8 --fidelity-every 80".split()
    for name, updates in (("run", "7"), ("run", "12"), ("whole", "12")):
        folder = str(tmp_path / name)
        assert main(["train", "signal", "--out", folder, *words, "--updates", updates]) == 0
    said = capsys.readouterr().out
    assert re.search(r"test, error: \d\.\d{4}; validation, error: \d\.\d{4}", said), said
    one, other = (read_log(tmp_path / name / "log.jsonl", "valid")[-1] for name in ("run", "whole"))
    assert (one["error"], one["bits"]) == (other["error"], other["bits"])
    assert main(["eval", folder]) == 0
    assert re.search(r"error: \d\.\d{4}\nsignal: sines of periods", capsys.readouterr().out)


def test_bad_input(capsys):
    for words, got in (("8 9", "8 9"), ("1 2 4 8 16 32", "1 2 4 8 16 32")):
        wanted = f"--sines must be 1 to 5 periods, each at least 1.5 times the one before; got {got}"
        refused(capsys, ["train", "signal", "--sines", *words.split()], wanted)
    refused(capsys, ["train", "signal", "--goal", "else"], "--goal: invalid choice: 'else'")
