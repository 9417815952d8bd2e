"""reproduce: its recipes, the search for rates, and a small table made, resumed and reported."""

import csv
import dataclasses
import json
import math
import re

import pytest
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands import cli, reproduce, training
from dnirnn.commands.cli import main
from dnirnn.commands.reproduce import RECIPES
from dnirnn.config.arguments import given as given_in
from dnirnn.config.task import trainer_config
from dnirnn.data import Vocabulary
from dnirnn.reports import recipes
from dnirnn.reports.recipes import BPTT, DNI, Arm, Recipe, Search, columns, options_of
from dnirnn.reports.report import Planned, Rates, introduction, words_of
from dnirnn.reports.runs import Run
from dnirnn.tasks.char_lm import CharLMOptions
from dnirnn.tasks.copy import CopyOptions
from dnirnn.training.log import read_log

BROKEN = Arm("broken", "broken", dict(optimizer="SGD", lr=1e30, clip=0.0))
SMALL = dict(hidden=4, batch=4, updates=20, estimator="dni", log_every=10)
COPY = Recipe(
    "Copy",
    "copy",
    CopyOptions(bits=1, solved_below=2.0, evaluate_every=8, max_length=3, **SMALL),
    (BPTT, DNI),
    (2, 3),
    (0,),
    "solved",
    quoted=recipes.QUOTED["copy"],
)


def table_of(folder) -> list[dict]:
    return list(csv.DictReader((folder / "table.csv").open()))


# Recipes


@pytest.mark.parametrize("budget", recipes.BUDGETS)
@pytest.mark.parametrize("table", RECIPES)
def test_every_run_of_every_recipe_can_be_made(table, budget):
    recipe = RECIPES[table](budget)
    names = [column.name for column in columns(recipe)]
    assert len(set(names)) == len(names) and recipe.baseline in recipe.arms
    for column in columns(recipe):
        size = dict(hidden=4) if "parameters" not in column.arm.changes else dict(parameters=20_000)
        taught = {} if column.arm.taught_by is None else dict(teachers=("teacher",))
        options = options_of(recipe, column, **size, **taught, seed=3, lr=0.25)
        early = column.decay == "none" and recipe.options.patience is not None
        assert (options.patience is not None) == early
        assert (options.seed, options.lr, options.truncation) == (3, 0.25, column.truncation)
        wanted = column.arm.changes.get("estimator", recipe.options.estimator.name)
        assert options.estimator.name == wanted
        words = ["train", recipe.task, *words_of(options)]
        assert type(options)(**given_in(cli.parser(words).parse_args(words))) == options
        words = [Vocabulary.of("tick")] if recipe.task == "char-lm" else []
        model = training.TASKS[recipe.task].make(options, *words)
        assert model.truncated.truncation == column.truncation
        usual = "sequence" if recipe.data == "sequences" else 1
        longer = column.arm.changes.get("update_steps", 0) // column.truncation
        chunks = column.arm.chunks or longer or usual
        assert trainer_config(options, 1, "none").chunks == chunks


@pytest.mark.parametrize("table", RECIPES)
def test_arms_of_a_table_differ(table, tmp_path):
    """In what they train: not two names of one thing."""
    recipe = RECIPES[table]("cpu")
    column = [one for one in columns(recipe) if one.truncation == recipe.truncations[0]]
    rates = Rates({}, {})
    made = [reproduce.planned_run(recipe, one, 0, tmp_path, rates) for one in column]
    made = [(run.options, run.processes) for run in made]
    assert all(a != b for i, a in enumerate(made) for b in made[:i])


def test_the_papers_figures_stand_where_they_are_run():
    for table in ("copy", "ptb"):
        recipe = RECIPES[table]("cpu")
        assert set(recipe.quoted) <= {arm.name for arm in recipe.arms}
        for figures in recipe.quoted.values():
            assert set(figures) & set(recipe.truncations)


def test_the_gpu_budget_is_one_for_a_gpu(monkeypatch):
    """Unless another device is asked for."""
    asked = []
    monkeypatch.setattr(reproduce, "jobs_and_threads", lambda *given: asked.append(given) or (1, 1))
    monkeypatch.setattr(reproduce, "reproduce", lambda recipe, *_: asked.append(recipe) or [])
    for words, device in (([], "cuda"), (["--device", "cpu"], "cpu")):
        assert main(["reproduce", "ptb", "--budget", "gpu", *words]) == 0
        given, recipe = asked[-2:]
        assert given[0] is None and given[-1] == device == recipe.options.device
        options = recipe.options
        assert (options.hidden, options.batch, recipe.search.rates[0]) == (1024, 256, 7e-5)


# The search


@given(
    best=st.floats(-5.5, -1.5),
    start=st.integers(-5, -2),
    count=st.integers(2, 4),
    steep=st.floats(0.5, 2),
)
def test_the_search_ends_at_the_lowest_of_a_valley(best, start, count, steep):
    """Wherever it starts: no neighbour on its grid is better."""

    def bits(rate):
        return abs(math.log10(rate) - best) ** steep

    first = tuple(2.0**i * 10.0**start for i in range(count))
    tried = {}
    while wanted := reproduce.untried(tried, first):
        assert not set(wanted) & set(tried) and len(tried) < 40
        tried |= {rate: bits(rate) for rate in wanted}
    found = min(tried, key=tried.get)
    assert set(first) <= set(tried)
    assert bits(found) <= min(bits(2 * found), bits(found / 2)) + 0.02


def test_the_search_goes_no_further_than_rates_make_sense():
    tried = {}
    while wanted := reproduce.untried(tried, (0.1, 0.3)):
        tried |= {rate: -rate for rate in wanted}
    assert sorted(tried) == [0.1, 0.3, 0.9]


# A table


def test_a_table_is_made_reported_and_not_made_again(made, tmp_path, capsys):
    code, begun = made(COPY)
    assert code == 0
    assert begun == [f"{arm}-T{steps}-seed0" for steps in (2, 3) for arm in ("bptt", "dni")]
    said, folder = capsys.readouterr().out, tmp_path / "out"
    report = (folder / "report.md").read_text()
    assert report.rstrip() in said
    for name in ("report.md", "table.csv", "results.csv", "log.jsonl", "curves.png"):
        assert str(folder / name) in said and (folder / name).exists()
    assert f"    dnirnn reproduce copy --out {folder} --jobs 1\n" in report
    for word in ("seconds", "sequences", "updates"):
        assert f"## Longest length solved, after equal {word}" in report
    (settings,) = re.findall(r"\n- all: (.*)\n", report)
    assert "--bits 1" in settings and "--hidden 4" in settings
    assert "\n- BPTT: --estimator none\n" in report
    # The paper's figures are marked in their row, and where they are from is said.
    assert re.search(r"\| BPTT, \*quoted\* +\| 7 +\| 8 +\|", report)
    assert re.search(r"\| DNI, \*quoted\* +\| 16 +\| 14 +\|", report)
    assert "*quoted*: Jaderberg et al." in report and "from memory" in report
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {row["run"] for row in logged} == set(begun)
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["run"], row["arm"], row["truncation"]) for row in rows] == [
        (name, name.split("-")[0], name[-7]) for name in begun
    ]

    assert made(COPY) == (0, [])
    assert made(COPY, "--seeds", "0", "1", "--arms", "dni", "--truncations", "3") == (
        0, ["dni-T3-seed1"],
    )  # fmt: skip


def test_the_real_command_runs_processes_and_draws(monkeypatch, tmp_path):
    recipe = dataclasses.replace(COPY, arms=(BPTT, DNI), truncations=(2,))
    monkeypatch.setitem(recipes.RECIPES, "copy", lambda budget: recipe)
    assert main(["reproduce", "copy", "--out", str(tmp_path), "--arms", "dni"]) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [row["arm"] for row in csv.DictReader((tmp_path / "results.csv").open())] == ["dni"]


def test_what_the_table_says_is_what_the_logs_say(made, tmp_path):
    made(COPY)
    folder = tmp_path / "out"
    for row in table_of(folder):
        if row["at"] not in ("data", "updates"):
            continue
        runs_there = [folder / f"{arm}-T{row['truncation']}-seed0" for arm in ("bptt", "dni")]
        logs = {run.name.split("-")[0]: read_log(run / "log.jsonl", "valid") for run in runs_there}
        field, unit = {"data": ("epochs", 4), "updates": ("update", 1)}[row["at"]]
        ends = [log[-1][field] * unit for log in logs.values()]
        assert float(row["limit"]) == min(ends)
        own = [r["solved"] for r in logs[row["arm"]] if r[field] * unit <= float(row["limit"])]
        assert float(row["median"]) == max(own)
        assert row["quoted"] == recipes.QUOTED["copy"][row["arm"]][int(row["truncation"])]


def test_interrupted_it_reports_what_is_done_and_goes_on(made, tmp_path, monkeypatch, capsys):
    train = training.train

    def interrupted(task, options, folder):
        if folder.name == "bptt-T3-seed0":
            raise KeyboardInterrupt
        train(task, options, folder)

    monkeypatch.setattr(training, "train", interrupted)
    assert made(COPY)[0] == 130
    said = capsys.readouterr()
    assert "to go on from there: dnirnn reproduce copy" in said.err
    assert {row["truncation"] for row in table_of(tmp_path / "out")} == {"2"}
    monkeypatch.setattr(training, "train", train)
    assert made(COPY) == (0, ["bptt-T3-seed0", "dni-T3-seed0"])
    assert {row["truncation"] for row in table_of(tmp_path / "out")} == {"2", "3"}


def test_a_run_that_fails_is_marked_and_does_not_stop_the_others(made, tmp_path, capsys):
    broken = dataclasses.replace(COPY, arms=(BPTT, BROKEN), truncations=(2,))
    code, begun = made(broken)
    assert (code, begun) == (1, ["bptt-T2-seed0", "broken-T2-seed0"])
    said = capsys.readouterr()
    assert re.search(r"dnirnn: broken-T2-seed0: update \d+: the ", said.err)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "† broken-T2-seed0 failed: update" in report
    results = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["run"] for row in results] == ["bptt-T2-seed0"]


def test_where_every_run_fails_the_report_says_how_far_they_came(made, tmp_path):
    late = BROKEN._replace(changes=dict(lr=1e30, evaluate_every=1))
    assert made(dataclasses.replace(COPY, arms=(late,), truncations=(2,)))[0] == 1
    assert "† broken-T2-seed0 failed" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "results.csv").read_text().strip() == ""


def language(text, **change) -> Recipe:
    options = CharLMOptions(corpus=str(text), embedding=4, evaluate_every=80, **SMALL)
    given = dict(decays=("none", "cosine"), search=Search((1e-3, 1e-2), 0.001), against=3)
    recipe = Recipe(
        "Penn Treebank characters", "char-lm", options, (BPTT, DNI), (2, 3), (0,),
        "bits", "test_bits", data="characters", quoted={"bptt": {3: "1.38"}}, **given,
    )  # fmt: skip
    return dataclasses.replace(recipe, **change)


def test_every_column_is_trained_at_the_rate_that_its_search_found(
    made, text, tmp_path, monkeypatch, capsys
):
    """The search's own runs are stood for: their figures decide."""
    bits = {1e-4: 2.9, 1e-3: 3.0, 1e-2: 2.0, 1e-1: 2.5}
    searched = []

    def stand_in(task, asked, folder, jobs, quiet):
        searched.extend(asked)
        for run in asked:
            run.folder.mkdir(parents=True)
            best = {"bits": bits[run.options.lr] * (-1 if "cosine" in run.name else 1)}
            result = {"stopped": "minutes", "seconds": 1, "best": best}
            (run.folder / "result.json").write_text(json.dumps(result))
        return []

    do = reproduce.run_missing
    monkeypatch.setattr(
        reproduce,
        "run_missing",
        lambda task, asked, folder, *rest: (stand_in if folder.name == "search" else do)(
            task, [run for run in asked if run.result() is None], folder, *rest
        ),
    )
    recipe = language(text, arms=(DNI,), truncations=(3,))
    code, begun = made(recipe)
    assert code == 0 and begun == ["dni-T3-seed0", "dni-T3-cosine-seed0"]
    # 1e-2 is best of the first two and at their edge, so 1e-1 is tried; the other way round, 1e-4.
    folder = tmp_path / "out"
    names = {run.name for run in searched}
    assert {"dni-T3-lr0.1", "dni-T3-cosine-lr0.0001"} <= names and len(names) == 6
    rates = {name: json.loads((folder / name / "config.json").read_text())["lr"] for name in begun}
    assert rates == {"dni-T3-seed0": 0.01, "dni-T3-cosine-seed0": 0.001}
    assert {run.options.seed for run in searched} == {reproduce.SEARCH_SEED}
    assert {run.options.updates for run in searched} == {None}
    report = (folder / "report.md").read_text()
    assert re.search(r"\| dni-T3 +\| +\| 3.0000 +\| \*\*2.0000\*\* \| 2.5000 \|", report)


def test_language_models_are_tested_and_measured_against_one_long_window(made, text, tmp_path):
    code, begun = made(language(text, search=None))
    assert code == 0 and len(begun) == 8
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("## Test, bits per character, best model on validation") == 2
    assert "how much more or less than BPTT 3" in report
    assert report.count("| BPTT, *quoted* |") == 2  # beside test figures only
    rows = table_of(tmp_path / "out")
    ends = {(r["arm"], r["truncation"], r["decay"]): r["median"] for r in rows if r["at"] == "end"}
    for (arm, truncation, decay), value in ends.items():
        name = f"{arm}-T{truncation}{'-cosine' * (decay == 'cosine')}-seed0"
        result = json.loads((tmp_path / "out" / name / "result.json").read_text())
        assert float(value) == result["test"]["test_bits"]
    # All are read at the same place, whatever their truncation.
    for axis in ("data", "seconds", "updates"):
        for decay in ("none", "cosine"):
            at = {r["limit"] for r in rows if (r["at"], r["decay"]) == (axis, decay)}
            assert len(at) == 1


# Bad input


BAD = {
    "no table": ([], "required: TABLE"),
    "another budget": (["copy", "--budget", "huge"], "invalid choice: 'huge'"),
    "another arm": (["copy", "--arms", "dni", "x"], "--arms must be of bptt, dni, .*; got x"),
    "another truncation": (["copy", "--truncations", "9"], "--truncations must be of 2, .* got 9"),
    "another decay": (["ptb", "--decays", "x"], "--decays must be of none, cosine; got x"),
    "nothing": (["ptb", "--arms", "dni", "--truncations", "40"], "nothing in common"),
    "jobs 0": (["copy", "--jobs", "0"], "--jobs must be at least 1; got 0"),
    "a device": (["copy", "--device", "tpu"], "device must be cpu, cuda or cuda:N; got 'tpu'"),
    "minutes 0": (["copy", "--minutes", "0"], "--minutes must be above 0; got 0"),
    "a seed": (["copy", "--seeds", "-1"], "--seed must be at least 0; got -1"),
    "no data": (["ptb", "--data-dir", "nowhere"], "--data-dir must be a folder with ptb.train"),
    "data of a task without": (["copy", "--data-dir", "x"], "unrecognized arguments"),
}


@pytest.mark.parametrize("words, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["reproduce", *words], message)
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_is_refused_before_anything_runs(made, tmp_path, capsys):
    assert made(COPY, "--truncations", "2")[0] == 0
    capsys.readouterr()
    wider = dataclasses.replace(COPY, options=dataclasses.replace(COPY.options, hidden=5))
    assert made(wider) == (2, [])
    assert "hidden (4 there, 5 here)" in capsys.readouterr().err


def test_a_report_says_of_all_runs_what_is_true_of_all(tmp_path):
    recipe = RECIPES["record"]("cpu")

    def first_lines(names):
        planned = [
            Planned(column, Run(column.name, options_of(recipe, column), tmp_path))
            for column in columns(recipe)
            if column.arm.name in names
        ]
        return "\n".join(introduction(recipe, planned, "Text", "command"))

    alone = first_lines(["cpu-5"])
    assert "Text. lstm 512, batch 32; a run ends after 5 minutes of training, evaluation" in alone
    both = first_lines(["cpu-5", "cpu-15"])
    assert "Text. A run ends after what its arm says below. Seeds" in both
