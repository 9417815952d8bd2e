"""torch.export of every core for inference, T and B left open, and programs in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_calls import needs_op
from strategies import CORES, Clock, assert_close
from torch import nn
from torch.export import Dim

import dnirnn
from dnirnn import (
    GRU,
    HMLSTM,
    LSTM,
    MTRNN,
    RNN,
    Clockwork,
    Deep,
    Dilated,
    Every,
    FastSlow,
    FromTorch,
    Hierarchy,
    NormLSTM,
    PhasedLSTM,
    Skip,
    WeightDrop,
    ops,
)

# Few graphs with every kind of core in them: each is traced for seconds.
GRAPHS = {
    "operators": lambda: Deep(
        [LSTM(3, 4, 2), WeightDrop(GRU(4, 4), 0.4), MTRNN(4, 4, (1, 3))], residual=True
    ),
    "in one another": lambda: Every(
        Hierarchy(FromTorch(nn.GRU(5, 4)), Skip(Clock(4, 2), bias=-0.5), 2), 2, "mean"
    ),
    "gated": lambda: Hierarchy(NormLSTM(5, 4, zoneout_c=0.4), PhasedLSTM(4, 2, open_ratio=0.6), 2),
    "clocks": lambda: Hierarchy(Clockwork(5, 4, (1, 3)), FastSlow(4, 2, 2, zoneout_h=0.1), 2),
    "detectors": lambda: Hierarchy(HMLSTM(5, 2, 2), Dilated(2, 2, [2]), 2),
}


def traced(core, x, state, t0, reset=None):
    steps, rows = Dim("T", min=1), Dim("B", min=1)
    shapes = {"x_TBI": {0: steps, 1: rows}, "state_BS": {0: rows}, "t0": {0: rows}}
    arguments = (x, state, t0) if reset is None else (x, state, t0, reset)
    if reset is not None:
        shapes["reset"] = {0: steps, 1: rows}
    with torch.no_grad():
        return torch.export.export(core, arguments, dynamic_shapes=shapes)


def drawn(core, steps, batch):
    x = torch.randn(steps, batch, core.input_size).double()
    return x, 0.5 * torch.randn(batch, core.state_size).double(), torch.arange(batch)


def made(name):
    torch.manual_seed(0)
    core = GRAPHS[name]().double().eval()
    return core, traced(core, *drawn(core, 3, 2))


def test_every_kind_of_core_is_here():
    kinds = {type(part) for make in GRAPHS.values() for part in make().modules()}
    named = {type(make(2, 2)) for make, _ in CORES.values()}
    assert {kind for kind in named if kind.__module__.startswith("dnirnn.")} - {RNN} <= kinds


@needs_op
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_serves_every_length_and_batch(name):
    core, program = made(name)
    run = program.module()
    with torch.no_grad():
        for steps, batch in ((3, 2), (7, 3), (1, 1)):
            given = drawn(core, steps, batch)
            assert_close(run(*given), core(*given))


def test_with_resets_and_on_the_reference_path(reference):
    """Made of torch's operations alone, which any process has."""
    core = LSTM(3, 2).double()
    reset = torch.rand(3, 2) < 0.5
    program = traced(core, *drawn(core, 3, 2), reset)
    assert not any("dnirnn" in str(node.target) for node in program.graph.nodes)
    given, reset = drawn(core, 6, 3), torch.rand(6, 3) < 0.3
    with torch.no_grad():
        assert_close(program.module()(*given, reset), core(*given, reset))


LOADS = """
import sys, torch
folder, library = sys.argv[1:]
torch.ops.load_library(library)
x, state, t0, output, ended = torch.load(f"{folder}/call.pt")
with torch.no_grad():
    found = torch.export.load(f"{folder}/core.pt2").module()(x, state, t0)
assert torch.equal(found[0], output) and torch.equal(found[1], ended), found
assert "dnirnn" not in sys.modules
"""


@needs_op
def test_a_saved_program_needs_the_operators_and_nothing_else_of_dnirnn(tmp_path):
    core, program = made("operators")
    torch.export.save(program, tmp_path / "core.pt2")
    given = drawn(core, 5, 3)
    with torch.no_grad():
        torch.save([*given, *core(*given)], tmp_path / "call.pt")
    library = str(Path(dnirnn.__file__).with_name(Path(ops.extension.__file__).name))
    run = [sys.executable, "-c", LOADS, str(tmp_path), library]
    found = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert found.returncode == 0, found.stderr
