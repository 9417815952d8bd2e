"""The examples run, and are as short as the README says."""

import re
import subprocess
import sys

import torch
from strategies import EXAMPLES, LeakyStack, assert_close

from dnirnn import LSTM


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
