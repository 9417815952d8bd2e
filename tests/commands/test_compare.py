"""compare: the runs it plans, does, keeps and resumes, and what it writes about them."""

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
from command_line import refused

from dnirnn.commands import compare
from dnirnn.commands.cli import main
from dnirnn.config.saved import identity
from dnirnn.estimators.base import ESTIMATORS
from dnirnn.reports import comparison, plots, runs
from dnirnn.reports.curves import Point
from dnirnn.tasks import images
from dnirnn.tasks.char_lm import FIGURES, CharLMOptions
from dnirnn.training.log import read_log

WORDS = "--hidden 4 --embedding 4 --batch 4 --evaluate-every 100 --quiet".split()
SHORT = [*WORDS, "--updates", "12", "--truncations", "2", "5"]


@pytest.fixture(scope="module")
def compared(text, tmp_path_factory):
    """(folder, words) of a comparison that is done."""
    folder = tmp_path_factory.mktemp("compared")
    words = ["compare", "char-lm", "--corpus", str(text), "--out", str(folder), *SHORT]
    words += ["--estimators", "dni", "--lrs", "dni:5=0.01"]
    assert main(words) == 0
    return folder, words


# The plan


def plan(tmp_path, given=None, seeds=(0, 1), rates=None, named=(), base=None, **varied):
    varied = varied or dict(truncation=[2, 8], estimator=["none", "dni"])
    return compare.plan("char-lm", given or {}, varied, tmp_path, seeds, rates, base, named)


def test_a_run_for_each_arm_seed_by_seed(tmp_path):
    names = [run.name for run in plan(tmp_path)]
    arms = ["T2-none", "T2-dni", "T8-none", "T8-dni"]
    assert names == [f"{arm}-seed{seed}" for seed in (0, 1) for arm in arms]
    for run in plan(tmp_path):
        options = run.options
        assert run.name == f"T{options.truncation}-{options.estimator}-seed{options.seed}"
        assert run.folder == tmp_path / run.name


def test_rates_go_to_their_arms_the_closer_first(tmp_path):
    rates = {"8": 0.5, "8:dni": 0.25}
    found = {run.name: run.options.lr for run in plan(tmp_path, seeds=[0], rates=rates)}
    usual = CharLMOptions().lr
    assert list(found.values()) == [usual, usual, 0.5, 0.25]


@pytest.mark.parametrize("arm", ["3", "dni:2"])
def test_a_rate_without_an_arm_is_refused(tmp_path, arm):
    with pytest.raises(ValueError, match="--lrs gives a rate for"):
        plan(tmp_path, truncation=[2, 8], estimator=["none"], rates={arm: 0.1})


def test_what_is_named_twice_is_run_once(tmp_path):
    assert len(plan(tmp_path, truncation=[2], estimator=["dni", "dni"], seeds=[1, 1])) == 1
    same = plan(tmp_path, core=["lstm", "skip"], skip_cost=[0.0, 0.5], seeds=[0])
    assert [run.name for run in same] == [
        "lstm-T50-none-seed0", "skip-T50-none-skip_cost0-seed0", "skip-T50-none-skip_cost0.5-seed0",
    ]  # fmt: skip


def test_any_options_are_varied_each_arm_with_what_goes_with_it(tmp_path):
    given = {"dense": True, "hidden": 9, "periods": (1, 3)}
    varied = dict(core=["clockwork", "lstm"], estimator=["none", "dni"], lr=[0.1, 0.2])
    planned = plan(tmp_path, given, seeds=[0], **varied)
    assert len(planned) == 8
    for run in planned:
        options = run.options
        assert options.hidden == 9 and run.name == (
            f"{options.core}-T50-{options.estimator}-lr{options.lr:g}-seed0"
        )
        assert getattr(options.core, "periods", (1, 3)) == (1, 3)
        assert getattr(options.estimator, "dense", True)


@pytest.mark.parametrize(
    "given, message",
    [({"skip_cost": 1.0}, "--skip-cost goes with --core skip only"), ({"hiden": 3}, "no option --hiden")],
)
def test_what_no_arm_reads_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        plan(tmp_path, given, core=["gru", "rnn"])


@pytest.mark.parametrize(
    "words, message",
    [
        ("lr", "--vary lr must have values"),
        ("hiden 3", "--vary must name an option: one of .*; got hiden"),
        ("seed 1 2", "--vary must name an option: --seeds; got seed"),
        ("lr fast", "--vary lr: .*'fast'"),
        ("dense maybe", "--vary dense must have values yes or no; got 'maybe'"),
        ("core wheel", "--core must be one of .*; got 'wheel'"),
        ("dilations 1,x --vary core dilated", "--vary dilations: .*'x'.*; got '1,x'"),
    ],
)
def test_what_can_not_be_varied_is_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["compare", "copy", "--vary", *words.split()], message)
    assert list(tmp_path.iterdir()) == []


def test_arms_start_from_a_config_where_one_is_given(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compare, "compare", lambda *arguments: asked.append(arguments) or [])
    options = CharLMOptions(core="skip", skip_cost=0.5, hidden=9, estimator="none", lr=0.25)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"task": "char-lm", **identity(options)}))
    words = ["--config", str(path), "--out", str(tmp_path), "--lr", "0.125"]
    assert main(["compare", "char-lm", *words, "--vary", "core", "skip", "gru"]) == 0
    ((_, (skip, gru), *_),) = asked
    assert skip.options == options.but(lr=0.125, quiet=True, threads=skip.options.threads)
    assert gru.options == skip.options.but(core="gru") and gru.options.hidden == 9


# What comes out


def test_every_run_has_its_row_and_the_paths_exist(compared):
    folder, _ = compared
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["run"], row["lr"]) for row in rows] == [
        ("T2-dni-seed0", "0.002"),
        ("T5-dni-seed0", "0.01"),
    ]
    for row in rows:
        result = json.loads((folder / row["run"] / "result.json").read_text())
        assert float(row["test_bits"]) == result["test"]["test_bits"]
        assert float(row["bits"]) == result["best"]["bits"]
        assert int(row["symbols"]) == result["symbols"] == 12 * 4 * int(row["truncation"])


def test_the_logs_are_put_together_unchanged(compared):
    folder, _ = compared
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for name in ("T2-dni-seed0", "T5-dni-seed0"):
        own = [{k: row[k] for k in row if k not in ("run", *comparison.ARM)} for row in rows
               if row["run"] == name]
        assert [one | {"lr": 0} for one in own] == [
            row | {"lr": 0} for row in read_log(folder / name / "log.jsonl")
        ]


def test_runs_are_of_the_threads_that_are_left(compared):
    """Both runs at a time on two cores: one thread each, whatever torch would take."""
    folder, _ = compared
    states = [path for path in folder.glob("*/checkpoints/*/state.json")]
    threads = {json.loads(path.read_text()).get("threads") for path in states}
    assert states and threads == {1}


def test_what_is_done_is_not_run_again(compared, capsys, monkeypatch):
    folder, words = compared
    monkeypatch.setattr(runs, "Child", None)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 runs of char-lm" in said and "2 of them done before" in said
    assert "1,080 / 60 / 60 symbols" in said
    for name in ("results.csv", "log.jsonl", "curves.png"):
        assert str(folder / name) in said


def test_without_a_task_it_is_of_language_models(compared, monkeypatch):
    folder, words = compared
    monkeypatch.setattr(runs, "Child", None)
    assert main(["compare", *words[2:]]) == 0


def test_other_arms_are_run_beside_and_every_row_is_kept(compared, capsys):
    """In the same folder: what earlier comparisons did there stays in the table and the files."""
    folder, words = compared
    where = words.index("--truncations")
    assert main([*words[:where], "--vary", "estimator", "none", "--vary", "lr", "0.03", "--truncations", "2"]) == 0
    said = capsys.readouterr().out
    rows = {row["run"]: row for row in csv.DictReader((folder / "results.csv").open())}
    new = "T2-none-lr0.03-seed0"
    assert set(rows) == {"T2-dni-seed0", "T5-dni-seed0", new}
    assert rows[new]["lr"] == "0.03" and re.search(r"lstm +2 +none +0.03 +1 ", said)
    assert re.search(r"lstm +5 +dni +0.01 +1 ", said)
    logged = {json.loads(line)["run"] for line in (folder / "log.jsonl").read_text().splitlines()}
    assert logged == set(rows)
    shutil.rmtree(folder / new)


def test_a_larger_budget_runs_on(compared):
    folder, words = compared
    options = CharLMOptions(updates=12)
    run = runs.Run("T2-dni-seed0", options, folder / "T2-dni-seed0")
    assert run.result() is not None
    longer = run._replace(options=dataclasses.replace(options, updates=13))
    assert longer.result() is None


def test_another_configuration_is_refused_before_anything_runs(compared, capsys, monkeypatch):
    _, words = compared
    monkeypatch.setattr(runs, "Child", None)
    assert main([*words, "--hidden", "5", "--updates", "99"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "hidden (4 there, 5 here)" in said


def test_a_run_that_fails_does_not_stop_the_others(text, tmp_path, capsys):
    words = ["compare", "char-lm", "--corpus", str(text), "--out", str(tmp_path), *SHORT]
    words += ["--estimators", "none", "--optimizer", "SGD", "--clip", "0", "--lrs", "5=1e30"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.err.startswith("dnirnn: T5-none-seed0: update ") and said.err.count("\n") == 1
    assert [row["run"] for row in csv.DictReader((tmp_path / "results.csv").open())] == [
        "T2-none-seed0"
    ]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_runs_which_resume(text, tmp_path, number, code):
    """Once a run has logged a row: it saves, and the same command finishes it."""
    words = ["compare", "char-lm", "--corpus", str(text), "--out", str(tmp_path), *WORDS]
    words += "--truncations 2 --estimators none --log-every 8 --minutes 5 --jobs 1".split()
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    program += "from dnirnn.commands.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "T2-none-seed0" / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        with pytest.raises(subprocess.TimeoutExpired):  # it goes on until it is interrupted
            process.wait(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "to go on from there: dnirnn compare char-lm" in said and "Traceback" not in said
    reached = read_log(log)[-1]["update"]
    assert list((log.parent / "checkpoints").iterdir())
    assert not (log.parent / "result.json").exists()

    budget = str(reached + 20)
    where = words.index("--minutes")
    assert main([*words[:where], "--updates", budget, "--jobs", "1"]) == 0
    updates = [row["update"] for row in read_log(log, "train")]
    assert updates == sorted(set(updates)) and updates[-1] == reached + 20


# The table


def finished(seed: int, bits: float, truncation: int = 8) -> tuple[runs.Run, dict]:
    options = CharLMOptions(truncation=truncation, seed=seed)
    result = {
        "stopped": "updates", "update": 10, "symbols": 2000, "epochs": 0.5, "seconds": 4.0,
        "best": {"update": 10, "symbols": 2000, "bits": bits + 0.1}, "test": {"test_bits": bits},
    }
    return runs.Run(f"run{seed}", options, None), result


def test_an_arm_has_the_mean_and_the_spread_of_its_seeds():
    done = comparison.with_arms([finished(0, 1.0), finished(1, 2.0)])
    said = comparison.table(done, FIGURES, "characters")
    header, _, line = said.splitlines()
    assert "test, bits per character" in header and "characters/s" in header
    assert "1.5000 ± 0.7071" in line and "1.6000 ± 0.7071" in line
    assert line.split()[-3:] == ["2,000", "4", "500"]


def test_one_seed_has_no_spread():
    done = comparison.with_arms([finished(0, 1.25), finished(0, 1.5, truncation=2)])
    said = comparison.table(done, FIGURES, "characters")
    lines = said.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [["lstm", "2"], ["lstm", "8"]]
    assert "1.2500" in lines[1] and "±" not in said


# The picture


def curve(name, colour, values):
    points = [Point(100 * i, 2.0 * i, i, value) for i, value in enumerate(values, 1)]
    return plots.Curve(name, colour, "-", points)


def test_the_picture_has_two_panels_a_row_and_a_line_an_arm(tmp_path, monkeypatch):
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    rows = {
        "above": [
            curve("2 steps, BPTT", "2", [3, 2]),
            curve("2 steps, DNI", "2", [3, 1.5]),
            curve("2 steps, DNI", "2", [4, 2.5, 2]),
            curve("40 steps, DNI", "40", []),
        ],
        "below": [curve("2 steps, DNI", "2", [3, 1])],
    }
    plots.learning_curves(rows, tmp_path / "curves.png", "bits", "characters", "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    data, time, below, _ = drawn[0].axes
    assert (data.get_xlabel(), time.get_xlabel()) == ("characters seen", "seconds of training")
    assert (data.get_ylabel(), below.get_ylabel()) == ("above\nbits", "below\nbits")
    lines = {line.get_label(): line.get_xydata().tolist() for line in data.lines}
    assert lines == {
        "2 steps, BPTT": [[100, 3], [200, 2]],
        "2 steps, DNI": [[100, 3.5], [200, 2]],
    }
    assert [line.get_xdata().tolist() for line in time.lines] == [[2, 4], [2, 4]]
    assert [line.get_xydata().tolist() for line in below.lines] == [[[100, 3], [200, 1]]]
    colours = {line.get_color() for line in (*data.lines, *below.lines)}
    assert len(colours) == 1
    pyplot.switch_backend("Agg")


def test_a_curve_of_one_point_is_drawn(tmp_path):
    plots.learning_curves({"": [curve("2", "2", [3])]}, tmp_path / "a.png", "bits", "x", "title")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_every_estimator_has_a_name_and_a_line_of_its_own():
    """Those of images too, which no other task has."""
    for kinds in (ESTIMATORS, images.Options.__dataclass_fields__["estimator"].metadata["registry"]):
        labels = [config.label for config in kinds.values()]
        assert all(labels) and len(set(labels)) == len(labels) <= len(set(comparison.STYLES))


def test_a_line_is_drawn_in_any_style(tmp_path):
    lines = [
        plots.Curve(str(style), "2", style, [Point(1, 2, 3, 4), Point(2, 3, 4, 3)])
        for style in comparison.STYLES
    ]
    plots.learning_curves({"": lines}, tmp_path / "a.png", "bits", "x", "title")
    assert (tmp_path / "a.png").stat().st_size > 1000
