"""What the benchmarks compare computes the same thing on both sides."""

import argparse
import json
import sys

import pytest
import torch
from strategies import assert_close
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as main
from benchmarks import depth, processes, ragged, steps
from benchmarks.cuda import Step, floor_of
from benchmarks.stacks import INPUT, PEERS


@pytest.mark.parametrize("name", PEERS)
def test_a_stack_and_its_loop_of_torch_cells_agree(name):
    peer = PEERS[name]()
    peer.core.double()
    x = torch.randn(9, 2, INPUT, dtype=torch.float64)
    outputs, _ = peer.core(x, peer.core.initial_state(2))
    assert_close(peer.loop(x), outputs)


@pytest.mark.parametrize("name", ragged.STREAMS)
def test_what_follows_in_a_row_is_what_torch_packs_and_masks(name):
    reset = ragged.STREAMS[name](30, 4)
    x, grad = torch.randn(30, 4, 3).double(), torch.randn(30, 4, 5).double()
    sides = ragged.sides(x, reset, grad)
    outputs = {side: run().detach() for side, run in sides.items()}
    assert_close(outputs["ours"], outputs["masked"])
    rows = [outputs["ours"][first:last, b] for b, first, last in ragged.starts_of(reset)]
    assert len(rows) > 4
    packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    assert_close(outputs["packed"], packed.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_step_and_plain_torch_s_agree(dtype):
    """Loss by loss, and in every weight after some steps: what a GPU is timed on, on the CPU."""
    step = Step(12, 3, 4, dtype, torch.device("cpu"), graphs=False)
    losses = []
    loss_of = step.text.loss
    step.text.loss = lambda *given: losses.append(loss_of(*given)) or losses[-1]
    # oneDNN has no LSTM of bfloat16 for CPUs that do not multiply it.
    with torch.backends.mkldnn.flags(enabled=False):
        for _ in range(5):
            step.plain(), step.ours()
    nats = [row[0] / 12 for row in step.updater.read()]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert nats == pytest.approx([float(loss) for loss in losses], rel=tolerance)
    ours = step.model.truncated
    pairs = [
        *zip(ours.core.parameters(), step.core.parameters(), strict=True),
        *zip(ours.estimator.parameters(), step.estimator.parameters(), strict=True),
        (step.model.readout.weight, step.text.readout.weight),
        (step.model.encoder.weight, step.text.embedding.weight),
    ]
    if dtype == torch.float32:
        for one, other in pairs:
            assert_close(one, other, tolerance)
        assert_close(step.ours_state, step.joined(step.state), tolerance)


@pytest.mark.parametrize("width", [3, 12])
def test_the_estimator_s_products_are_those_of_its_step(width):
    """Counted by torch as it makes them: two predictions, one of them fitted."""
    estimator = steps.plain_estimator(6, width)
    entered, sent = torch.randn(2, 5, 12)
    with FlopCounterMode(display=False) as counted:
        with torch.no_grad():
            estimator(sent)
        estimator(entered).square().sum().backward()
    assert counted.get_total_flops() == steps.estimator_flops(6, width, 5)


def test_floors_are_of_their_rates():
    rates = {"float32": 1e12, "bytes": 1e9, "step": 1e-6}
    floors = floor_of(256, 32, 40, 5, "float32", rates)
    assert floors["steps"] == pytest.approx(48e-6)
    assert floors["flops"] == pytest.approx(24 * 40 * 32 * 256 * 320 / 1e12)
    wide = floor_of(256, 32, 40, 5, "float32", rates, inputs=256)
    assert wide["flops"] == pytest.approx(24 * 40 * 32 * 256 * 512 / 1e12)
    double = floor_of(256, 32, 40, 5, "float32", {**rates, "bytes": 2e9})
    assert double["bytes"] == pytest.approx(floors["bytes"] / 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_its_part_is_skipped_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "cuda", "--out", str(tmp_path / "out.json")])
    main.main()
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("cuda:")]
    assert "skipped, device cuda" in line
    assert json.loads((tmp_path / "out.json").read_text())["cuda"] is None


def test_a_cut_at_every_layer_is_timed(tmp_path, monkeypatch, capsys):
    for name, size in (("PIXELS", 5), ("WIDTH", 4), ("BATCH", 3), ("SIZES", [5, *[4] * depth.LAYERS])):
        monkeypatch.setattr(depth, name, size)
    words = ["benchmarks", "depth", "--seconds", "0.01", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", words)
    main.main()
    found = json.loads((tmp_path / "out.json").read_text())["depth"]
    assert set(found) == {"dni_ms", "backpropagation_ms", "floor_ms", "dni_vs_backpropagation"}
    assert min(found.values()) > 0 and "DNI/backpropagation" in capsys.readouterr().out


def test_the_processes_are_compared_with_what_perfect_overlap_gives():
    setting = dict(ranks_asked=2, delay=10.0, slow=0.0)
    rows = [
        dict(way=way, ranks=2, rank=rank, updates=updates, seconds=updates / rate, busy=0.5, mb=1.5,
             accuracy=None if rank else 0.9, **setting)
        for way, rate in (("ddp", 20), ("decoupled 1", 40))
        for updates in (10, 20)
        for rank in (0, 1)
    ]  # fmt: skip
    rows += [dict(way="floor", ranks=2, rank=r, alone=(1 + r) / 100, **setting) for r in (0, 1)]
    *_, ddp, decoupled = processes.table(rows).splitlines()
    assert ddp == "| 2 | 10.0 | 0.0 | ddp | 20.0 | 40 % | 0.9000 | 0.50 0.50 | 1.50 1.50 |"
    assert "| decoupled 1 | 40.0 | 80 % |" in decoupled


def test_a_pipeline_s_parts_are_the_network_s():
    options = argparse.Namespace(seed=0, width=8, layers=5, batch=4, slow_seconds=0.0)
    whole, halves = (torch.nn.Sequential(*processes.parts_of(options, n)) for n in (1, 2))
    x = torch.rand(4, 64)
    assert torch.equal(whole(x), halves(x))
