"""compare --on ray: its runs as tasks of a local Ray of two workers."""

import csv

import pytest

from dnirnn.commands.cli import main
from dnirnn.reports import ray_runs

ray = pytest.importorskip("ray", reason="ray is not installed: pip install ray")


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setattr("dnirnn.commands.cli.usable_cores", lambda: 2)
    (tmp_path / "text").write_text("tick tock the clock\n" * 60)
    said = "compare char-lm --hidden 4 --embedding 4 --batch 4 --evaluate-every 100 --quiet --updates 6"
    said += " --truncations 2 5 --estimators none --lrs 5=1e38 --clip 0 --on ray"
    return [*said.split(), "--corpus", str(tmp_path / "text"), "--out", str(tmp_path / "runs")]


def test_runs_are_tasks_and_one_that_fails_is_named(words, tmp_path, capfd):
    assert main(words) == 1
    said = capfd.readouterr()
    assert "T5-none-seed0: update" in said.err and "loss is nan" in said.err
    with open(tmp_path / "runs" / "results.csv") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["T2-none-seed0"]
    assert not ray.is_initialized()


def test_another_place_is_refused_by_name(words, capsys):
    assert main([*words, "--on", "slurm"]) == 2
    assert "--on must be ray or ray:ADDRESS; got 'slurm'" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(words, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(words) == 2
    assert "pip install 'dnirnn[ray]'" in capsys.readouterr().err


def test_here_nothing_changes():
    with ray_runs.on(None, 3) as cores:
        assert cores == 3
