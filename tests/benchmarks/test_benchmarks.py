"""What the benchmarks compare computes the same thing on both sides."""

import argparse
import json
import re
import sys
import time

import pytest
import torch
from strategies import assert_close
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as main
from benchmarks import cuda, depth, ragged, steps
from benchmarks.cuda import Step, floor_of
from benchmarks.processes import __main__ as processes
from benchmarks.processes import cases, chars, network, tables
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


def test_points_of_a_gpu_are_those_of_its_tables_or_those_given():
    assert cuda.point_of("tf32,256,32") == ("tf32", 256, 32)
    assert cuda.point_of("bfloat16,512,128,40,5") == ("bfloat16", 512, 128, 40, 5, cuda.INPUT)
    assert cuda.point_of("bfloat16,768,16,1024,128,768") in cuda.points_of(quick=True)
    quick, whole = cuda.points_of(quick=True), cuda.points_of(quick=False)
    assert set(quick) < set(whole) and len(set(whole)) == len(whole)


@pytest.mark.parametrize(
    "word", ["", "int8,256,32", "tf32,256", "tf32,256,32,8", "tf32,0,32", "tf32,8,4,40,7", "tf32,a,32"]
)
def test_a_point_that_is_none_is_named(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--points", word])
    with pytest.raises(SystemExit):
        main.main()
    assert f"got {word!r}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--points", "tf32,256,32"], ["--timelines"]], ids=str)
def test_what_is_of_a_gpu_goes_with_no_other_part(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "op", *words])
    with pytest.raises(SystemExit):
        main.main()
    assert "are of cuda; got op" in capsys.readouterr().err


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


# Several processes


@pytest.fixture
def one_core(monkeypatch):
    """Threads that wait for one another take many times as long where others want the cores."""
    monkeypatch.setattr(cases, "cores", lambda: 1)


def test_the_processes_are_compared_with_what_perfect_overlap_gives():
    setting = dict(section="real", ranks=2, delay=10.0, slow=0.0)
    runs = [
        dict(way=way, updates_per_second=rate, accuracy=right, busy=[0.5, 0.25], mb=[1.5, 1], **setting)
        for way, rate, right in (("ddp", 20, [0.8, 0.9]), ("decoupled 1", 40, [0.7, 0.85]), ("floor", 50, None))
    ]  # fmt: skip
    runs.append(dict(way="gpipe 2", failed="it took more than 9 s", **setting))
    common = dict(section="chars", steps=8, batch=64)
    for way, rate in (("one", 10), ("ddp", 15), ("ddp, nn.LSTM", 12)):
        runs.append(dict(way=way, updates_per_second=rate, **common))
    said = tables.table(runs)
    assert "| 2 | 10 | 0 | ddp | 20.0 | 40 % | 0.8000 | 0.9000 | 0.50 0.25 | 1.50 1.00 |" in said
    assert "| decoupled 1 | 40.0 | 80 % |" in said and "| gpipe 2 | it took more than 9 s |" in said
    assert "| 8 | ddp | 7,680 | 1.50 | 1.25 |" in said


def case_of(**more) -> argparse.Namespace:
    common = dict(seed=0, width=8, layers=5, batch=4, seconds=0.2, rounds=2, ranks=2, steps=3)
    return argparse.Namespace(**{**common, "delay": 0.0, "slow": 0.0, "work": 0.0, **more})


def test_a_pipeline_s_parts_are_the_network_s():
    whole, halves = (torch.nn.Sequential(*network.parts_of(case_of(), n, 0.0)) for n in (1, 2))
    x = torch.rand(4, 64)
    assert torch.equal(whole(x), halves(x))


@pytest.mark.parametrize("name", ["one", "ddp", "gpipe 2", "1f1b 2", "decoupled 1", "floor"])
def test_every_way_learns_over_a_slow_link_to_a_slow_rank(name, one_core):
    network.digits()
    case = case_of(delay=0.002, slow=0.004, work=0.004)
    found = cases.measured(network.ways(2, [1], [1])[name], 1 if name == "one" else 2, case)
    assert found.get("failed") is None and found["updates"] >= 2
    assert all(one < other for one, other in zip(found["seconds"], found["seconds"][1:]))
    assert len(found["busy"]) == len(found["mb"]) == (1 if name == "one" else 2)
    assert (sum(found["mb"]) > 0) == (name not in ("one", "floor"))
    assert (found["accuracy"] is None) == (name == "floor")


def test_a_message_is_late_by_what_its_link_takes():
    """gpipe's update needs one message up and one down."""
    network.digits()
    case = case_of(delay=0.03)
    found = cases.measured(network.ways(2, [1], [1])["gpipe 2"], 2, case)
    assert found["updates_per_second"] < 1 / 0.06


@pytest.mark.parametrize("name", chars.WAYS)
def test_a_character_model_is_trained_by_one_process_and_two(name, one_core):
    found = cases.measured(chars.WAYS[name], 1 if name.startswith("one") else 2, case_of())
    assert found.get("failed") is None and found["updates_per_second"] > 0


def test_a_case_that_hangs_or_fails_is_ended(monkeypatch, capfd):
    monkeypatch.setattr(cases, "limit_of", lambda case: 1.5)

    def hang(rank, ranks, case):
        time.sleep(60)

    def fail(rank, ranks, case):
        raise RuntimeError("no such network")

    assert cases.measured(hang, 2, case_of()) == {"failed": "it took more than 2 s"}
    assert cases.measured(fail, 2, case_of()) == {"failed": "RuntimeError: no such network"}
    assert "no such network" in capfd.readouterr().err


def test_the_command_says_what_it_takes_and_writes_as_it_goes(tmp_path, capsys, one_core):
    words = ["--sections", "real", "chars", "--settings", "2,1,0", "--ways", "ddp", "floor", "--seconds", "0.1"]
    words += ["--rounds", "1", "--width", "8", "--hidden", "4", "--char-batch", "2", "--steps", "2", "--quick"]
    processes.main([*words, "--batch", "8", "--out", str(tmp_path)])
    assert re.search(r"^6 cases on \d+ cores: about \d+ minutes, never more than \d+", capsys.readouterr().out)
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert [run["way"] for run in runs] == ["ddp", "floor", *chars.WAYS]
    assert (tmp_path / "table.md").read_text() == tables.table(runs)


@pytest.mark.parametrize("quick", [True, False])
def test_all_that_is_asked_is_planned(quick):
    options = argparse.Namespace(
        seed=0, seconds=1, rounds=1, sections=processes.SECTIONS, settings=None, quick=quick,
        microbatches=[1, 2], staleness=[1, 8], ways=processes.WAYS, work=20, width=8, batch=8, layers=8,
        hidden=512, char_batch=64, steps=[8, 40],
    )  # fmt: skip
    planned = processes.planned(options)
    minutes = len(planned) * (3 + processes.OVERHEAD) / 60
    assert not quick or minutes < 15
    made = {(case.section, case.ranks, case.way.split()[0]) for _, _, case in planned}
    assert {("simulated", ranks, way) for ranks in (2, 4, 8) for way in processes.WAYS} <= made
    assert {(c.steps, c.way) for _, _, c in planned if c.section == "chars"} == {
        (steps, way) for steps in (8, 40) for way in chars.WAYS
    }
