"""reproduce timescales: its runs, who is ahead, and that it is made and resumed."""

import csv

import pytest
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.registry import TASKS
from dnirnn.reports import contests
from dnirnn.reports.timescales import ahead, figure_of, plan

STACKS = {"dilated", "clockwork-lstm", "phased", "skip", "hm-lstm", "fast-slow"}


def runs_of(sections):
    return [run for section in sections for run in section.runs.values()]


@pytest.mark.parametrize("budget", contests.BUDGETS)
def test_its_runs_are_all_options_that_there_are(budget, tmp_path):
    sections = plan(budget, tmp_path, {}, tmp_path, (0, 1), None)
    runs = runs_of(sections)
    assert len({run.name for run in runs}) == len(runs) > 40
    assert {run.options.core.name for run in runs} >= STACKS
    for section in sections:
        of = [run.options for run in section.runs.values()]
        assert len({options.minutes for options in of}) == 1, "equal seconds"
        assert len({options.parameters for options in of}) == 1, "equal parameters"
        assert of[0].parameters or section.contest.task == "digits"
        figures = {figure.key for figure in TASKS[section.contest.task].FIGURES}
        assert figure_of(section.contest).key in figures and section.contest.figure in figures
        plain = [arm for arm in section.contest.arms.values() if arm.plain]
        assert 0 < len(plain) < len(section.contest.arms)


def test_the_budget_of_two_cores_is_two_hours_in_all(tmp_path):
    """Of which a little is left to what is not training: starting, evaluating, saving."""
    sections = plan("cpu", tmp_path, {}, None, contests.SEEDS["cpu"], None)
    assert sum(run.options.minutes for run in runs_of(sections)) <= 0.9 * 2 * 120


def test_equal_parameters_are_nearly_so(tmp_path):
    for section in plan("quick", tmp_path, {}, None, (0,), None):
        if section.contest.task == "digits":
            continue
        for run in section.runs.values():
            model = TASKS[section.contest.task].build(run.options).model
            count = sum(parameter.numel() for parameter in model.core_parameters())
            assert count == pytest.approx(run.options.parameters, rel=0.15), run.name


values = st.lists(st.floats(0, 9), min_size=1, max_size=4)


@given(own=values, one=values, other=values, lower=st.booleans())
def test_ahead_is_better_in_every_seed(own, one, other, lower):
    (figure,) = [f for f in TASKS["adding"].FIGURES if f.key == ("error" if lower else "within")]
    others = [*one, *other]
    wins = [a < b if lower else a > b for a in own for b in others]
    assert ahead(own, [one, other], figure) is all(wins)


def test_it_is_made_and_resumed(tmp_path, capsys):
    pytest.importorskip("sklearn")
    words = ["reproduce", "timescales", "--budget", "quick", "--jobs", "1", "--out", str(tmp_path)]
    words += ["--minutes", "0.003", "--only", "uneven-phased", "uneven-lstm-seed", "rows-skip-0.01"]
    assert main(words) == 0
    said = (tmp_path / "report.md").read_text()
    assert "dnirnn reproduce timescales --budget quick" in said
    assert "| A sine at random times: is it in tune? | phased LSTM | 0." in said
    assert "| MNIST" not in said and "from memory, not checked against the paper" in said
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows if row["share_of_updates"]] == ["rows-skip-0.01-seed0"]
    assert len(rows) == 3 and {row["task"] for row in rows} == {"signal", "pixels"}
    for name in ("uneven.png", "rows.png", "log.jsonl"):
        assert (tmp_path / name).stat().st_size > 50
    capsys.readouterr()
    assert main(words) == 0
    assert "2 of them done before" in capsys.readouterr().out


def test_bad_input(capsys, tmp_path):
    words = ["reproduce", "timescales", "--out", str(tmp_path)]
    refused(capsys, [*words, "--only", "nothing"], "--only nothing leaves no run of timescales")
    refused(capsys, [*words, "--minutes", "0"], "--minutes must be positive; got 0.0")
    refused(capsys, [*words, "--only", "rows", "--data-dir", str(tmp_path)], "folder with MNIST's four idx files")
