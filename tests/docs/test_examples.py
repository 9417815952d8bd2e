"""The examples run, and are as short as the README says."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from strategies import EXAMPLES, LeakyStack, assert_close

from dnirnn import LSTM
from dnirnn.commands.cli import main
from dnirnn.data import Batch


def test_a_stack_of_ones_own_takes_less_than_60_lines():
    assert len((EXAMPLES / "leaky_stack.py").read_text().splitlines()) < 60


def test_its_averages_are_leaky_ones():
    core = LeakyStack(LSTM(3, 4), times=(2.0, 10.0)).double()
    x = torch.randn(6, 2, 3).double()
    output, _ = core(x, core.initial_state(2))
    y, *averages = output.split(4, 2)
    for time, average in zip((2.0, 10.0), averages):
        weights = [(1 - 1 / time) ** (5 - i) / time for i in range(6)]
        assert_close(average[-1], sum(w * y_i for w, y_i in zip(weights, y)), 1e-6)


def test_the_example_learns():
    program = [sys.executable, str(EXAMPLES / "leaky_stack.py")]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    losses = [float(found) for found in re.findall(r": ([\d.]+) nats", result.stdout)]
    assert losses[0] > 0.6 and losses[-1] < 0.4


@pytest.fixture(scope="module")
def predictable():
    spec = importlib.util.spec_from_file_location("predictable", EXAMPLES / "predictable_future.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_linear_in_the_state_is_explained_and_noise_is_not(predictable):
    torch.manual_seed(0)
    parts = [torch.arange(0, 700), torch.arange(700, 800), torch.arange(800, 1000)]
    states, noise = torch.randn(2, 1000, 6).double()
    linear = states @ torch.randn(6, 6).double()
    for fits in (predictable.ridges, predictable.mlps):

        def share(target, fits=fits, judge=predictable.explained):
            return predictable.best(fits, states, target, parts, judge)

        assert share(linear) > 0.9 and share(linear, judge=predictable.cosine) > 0.95
        assert share(noise) < 0.02 and abs(share(noise, judge=predictable.cosine)) < 0.15
        assert 0.3 < share(linear + linear.std() * noise) < 0.7
        assert share(torch.cat([linear[:800], -linear[800:]])) < -1  # judged by what was not chosen by


def test_a_state_is_on_one_side_only(predictable):
    """So that what is known by heart explains nothing."""
    torch.manual_seed(0)
    kinds = torch.randn(40, 5).double()
    rows = torch.randint(40, (800,))
    states = kinds[rows] + 1e-7 * torch.randn(800, 5).double()
    parts, count = predictable.split(states)
    assert count == len(rows.unique())
    sides = [set(rows[part].tolist()) for part in parts]
    assert all(sides) and len(set.union(*sides)) == sum(map(len, sides)) == count
    by_heart = torch.randn(40, 5).double()[rows]
    assert predictable.best(predictable.ridges, states, by_heart, parts, predictable.explained) < 0.3


def test_what_comes_is_told_step_by_step(predictable):
    x = torch.arange(5).view(5, 1)
    told = predictable.coming(Batch(x, x + 1), [2, 4, 5], 2, 7)
    one_hot = torch.nn.functional.one_hot
    assert torch.equal(told[0, 0], torch.cat([one_hot(torch.tensor(n), 7) for n in (2, 3, 3, 4)]).float())
    assert told[1, 0].sum() == 2 and not told[2].any()
    silent = torch.tensor([0.0, 1.0]).view(2, 1)
    bits = predictable.coming(Batch(torch.ones(2, 1, 2), torch.ones(2, 1, 1), silent), [0], 2, 0)
    assert bits.tolist() == [[[1, 1, 0, 1, 1, 1]]]


@pytest.mark.parametrize("words", [["copy", "--bits", "1"], ["char-lm"]], ids=lambda w: w[0])
def test_a_run_s_future_is_measured(words, tmp_path):
    run = tmp_path / "run"
    small = "--hidden 4 --batch 2 --truncation 3 --updates 2 --quiet --out".split()
    assert main(["train", *words, *small, str(run)]) in (None, 0)
    program = [sys.executable, str(EXAMPLES / "predictable_future.py"), str(run), "--batches", "1"]
    program += ["--reads", "0", "2"]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d states, [\d,]+ distinct, 40 steps ahead", result.stdout)
    shares = re.findall(r"next (\d) steps: ridge -?[\d.]+, MLP -?[\d.]+ .* cosine -?[\d.]+", result.stdout)
    assert shares == ["0", "2"]


def test_a_graph_that_is_no_chain_learns():
    program = [sys.executable, str(EXAMPLES / "two_encoders.py")]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"updates: ([\d.]+)", result.stdout)[1]) > 0.95
