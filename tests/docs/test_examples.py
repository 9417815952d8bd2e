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
    parts = slice(0, 700), slice(700, 800), slice(800, 1000)
    states, noise = torch.randn(2, 1000, 6).double()
    linear = states @ torch.randn(6, 6).double()
    for share in (predictable.ridge, predictable.mlp):
        assert share(states, linear, *parts) > 0.9
        assert share(states, noise, *parts) < 0.02
        half = share(states, linear + linear.std() * noise, *parts)
        assert 0.3 < half < 0.7
        turned = torch.cat([linear[:800], -linear[800:]])  # judged by what was not chosen by
        assert share(states, turned, *parts) < -1


@pytest.mark.parametrize("words", [["copy", "--bits", "1"], ["char-lm"]], ids=lambda w: w[0])
def test_a_run_s_future_is_measured(words, tmp_path):
    run = tmp_path / "run"
    small = "--hidden 4 --batch 2 --truncation 3 --updates 2 --quiet --out".split()
    assert main(["train", *words, *small, str(run)]) in (None, 0)
    program = [sys.executable, str(EXAMPLES / "predictable_future.py"), str(run), "--batches", "1"]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shares = re.findall(r"(ridge|MLP): +(-?[\d.]+)", result.stdout)
    assert [name for name, _ in shares] == ["ridge", "MLP"]


def test_a_graph_that_is_no_chain_learns():
    program = [sys.executable, str(EXAMPLES / "two_encoders.py")]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"updates: ([\d.]+)", result.stdout)[1]) > 0.95
