"""reproduce distill, codistill and batch-size: who teaches whom, what runs when, what the reports begin with."""

import csv
import dataclasses
import json
import re

import pytest

from dnirnn.commands import reproduce
from dnirnn.commands.cli import main
from dnirnn.commands.reproduce import RECIPES
from dnirnn.reports import batch_size, recipes, runs, teachers
from dnirnn.reports.curves import Point
from dnirnn.reports.recipes import Column
from dnirnn.reports.report import Rates
from dnirnn.reports.tables import Trace
from dnirnn.tasks.char_lm import CharLMOptions

FEW = dict(minutes=None, updates=4, evaluate_every=12, log_every=6, embedding=4, batch=2)


def small(table: str, text: str, **changes):
    """The table's recipe with networks of a few units and a text that is there."""
    recipe = RECIPES[table]("quick")
    options = CharLMOptions(corpus=str(text), hidden=4, estimator="none", **FEW)
    arms = tuple(arm._replace(changes={
        name: {"hidden": 6, "minutes": None}.get(name, value) for name, value in arm.changes.items()
    }) for arm in recipe.arms)  # fmt: skip
    baseline = next(arm for arm in arms if arm.name == recipe.baseline.name)
    given = dict(options=options, truncations=(3,), arms=arms, baseline=baseline)
    return dataclasses.replace(recipe, **(given | changes))


def test_teachers_are_trained_first_and_each_student_has_its_own(made, text, tmp_path):
    recipe = small("distill", text, seeds=(0, 1))
    code, begun = made(recipe)
    assert code == 0 and len(begun) == 14
    taught = ("distilled", "twentieth-distilled", "twentieth-ensemble")
    order = [name.startswith(taught) for name in begun]
    assert order == sorted(order) and sum(order) == 6
    folder = tmp_path / "out"

    def teachers_of(name):
        config = json.loads((folder / name / "config.json").read_text())
        return [path.rpartition("/")[2] for path in config["teachers"]]

    for seed in (0, 1):
        assert teachers_of(f"distilled-T3-cosine-seed{seed}") == [f"teacher-T3-cosine-seed{seed}"]
        assert teachers_of(f"twentieth-ensemble-T3-cosine-seed{seed}") == [
            "teacher-T3-cosine-seed0", "teacher-T3-cosine-seed1",
        ]  # fmt: skip
    rows = {row["arm"]: row for row in csv.DictReader((folder / "table.csv").open()) if row["at"] == "end"}
    report, teacher = (folder / "report.md").read_text(), float(rows["teacher"]["median"])
    for before, after, words in (
        ("alone", "distilled", "taught by one"),
        ("twentieth", "twentieth-distilled", "taught by one, on a twentieth of the text"),
    ):
        alone, one = (float(rows[name]["median"]) for name in (before, after))
        share = (alone - one) / (alone - teacher)
        assert f"- {words}: {share:.0%} ({one:.4f})" in report
    assert made(recipe) == (0, [])  # with their teachers, which are part of what they are


def test_workers_that_teach_each_other_are_processes_of_their_own(
    monkeypatch, text, tmp_path
):  # fmt: skip
    recipe = small("codistill", text)
    monkeypatch.setitem(recipes.RECIPES, "copy", lambda budget: recipe)
    words = ["reproduce", "copy", "--out", str(tmp_path), "--arms", "double", "codistilled"]
    assert main(words) == 0
    workers = sorted(path.parent.name for path in tmp_path.glob("codistilled*/*/result.json"))
    assert workers == ["worker-0", "worker-1"]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["arm"] for row in rows] == ["double", "codistilled"]
    started = []
    monkeypatch.setattr(runs, "start", lambda task, run: started.append(run))
    assert main(words) == 0 and not started


def test_threads_are_shared_among_the_processes_of_a_run(tmp_path):
    recipe = RECIPES["codistill"]("cpu")
    recipe = dataclasses.replace(recipe, options=recipe.options.but(threads=2))
    planned = {
        arm.name: reproduce.planned_run(recipe, Column(arm, 40, "none"), 0, tmp_path, Rates({}, {}))
        for arm in recipe.arms
    }
    threads = {name: (run.processes, run.options.threads) for name, run in planned.items()}
    assert threads["codistilled"] == threads["parallel"] == (2, 1)
    assert threads["double"] == threads["alone"] == (1, 2)
    command = runs.command_of(planned["parallel"], "CHILD", "HERE", ["train"])
    assert command[3:8] == ["HERE", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert runs.command_of(planned["alone"], "CHILD", "HERE", ["train"])[2:] == ["CHILD", "HERE", "dnirnn", "train"]


def test_micro_batches_take_the_rate_of_their_batch(tmp_path):
    recipe = RECIPES["batch-size"]("cpu")
    rates = Rates({f"batch-{size}-T40": size / 1000 for size in batch_size.SIZES}, {})
    found = {
        arm.name: reproduce.planned_run(recipe, Column(arm, 40, "none"), 0, tmp_path, rates).options
        for arm in recipe.arms
    }
    whole, pieces = found[batch_size.LARGEST], found[batch_size.LARGEST + "-in-4"]
    assert whole.lr == pieces.lr == 0.512 and found["batch-4"].lr == 0.004
    assert pieces == whole.but(micro_batch=128)


def logged(folder, pairs) -> Trace:
    """A run whose log has these training and validation bits."""
    folder.mkdir()
    rows = [{"kind": kind, "bits": bits} for pair in pairs for kind, bits in zip(("train", "valid"), pair)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arm = RECIPES["batch-size"]("cpu").arms[0 if folder.name == "a" else 1]
    options = CharLMOptions()
    return Trace(Column(arm, 40, "none"), runs.Run(folder.name, options, folder), [Point(1, 1, 1, 1)], {})


def test_validation_is_read_where_training_is_equally_far(tmp_path):
    one = logged(tmp_path / "a", [(3.0, 3.5), (2.0, 2.6), (1.0, 2.2)])
    other = logged(tmp_path / "b", [(2.5, 2.9), (1.9, 2.4)])
    lines = batch_size.at_equal_training_loss(RECIPES["batch-size"]("cpu"), [one, other])
    assert "1.9000 bits" in lines[0]
    assert lines[-3:-1] == ["| batch 4 | 2.2000 |", "| batch 8 | 2.4000 |"]


@pytest.mark.parametrize("known", [{}, {"teacher": 1.0}, {"teacher": 1.0, "alone": 1.0}])
def test_no_gap_has_no_share(known):
    recipe = RECIPES["distill"]("cpu")
    traces = [
        Trace(Column(arm, 40, "cosine"), None, [], {"test": {"test_bits": known[arm.name]}})
        for arm in recipe.arms if arm.name in known
    ]  # fmt: skip
    assert teachers.share_of_the_gap(recipe, traces) == []


def test_an_ensemble_is_what_eval_says(made, text, tmp_path, capsys):
    recipe = small("codistill", text, seeds=(0, 1))
    recipe = dataclasses.replace(recipe, arms=tuple(a for a in recipe.arms if a.processes == 1))
    assert made(recipe)[0] == 0
    report = (tmp_path / "out" / "report.md").read_text()
    (said,) = re.findall(r"The mean prediction of two runs of one worker: (.*)\.\n", report)
    first, other = (str(tmp_path / "out" / f"alone-T3-seed{seed}") for seed in (0, 1))
    assert main(["eval", first, "--others", other]) == 0
    assert said in capsys.readouterr().out
