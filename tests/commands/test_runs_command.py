"""runs, table, plot: on any runs there are."""

import pytest
import torch

from dnirnn.commands.cli import main

COMMON = "--hidden 8 --batch 4 --updates 6 --evaluate-every 30 --threads 1 --quiet".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two copy runs of two rates, made apart, and one of adding."""
    folder = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    for name, words in {
        "one": ["copy", "--lr", "0.01"],
        "deep/two": ["copy", "--lr", "0.001"],
        "other": ["adding", "--length", "6"],
    }.items():
        assert main(["train", *words, "--out", str(folder / name), *COMMON]) == 0
    torch.set_num_threads(threads)
    return folder


def refused(capsys, *words):
    assert main(list(map(str, words))) == 2
    return capsys.readouterr().err


def test_runs_lists_them_at_any_depth(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "task"]
    assert [line.split()[1] for line in lines] == ["copy", "copy", "adding"]
    assert all(line.split()[-1] == "updates" for line in lines)


def test_table_shows_what_differs(runs, capsys):
    assert main(["table", str(runs / "one"), str(runs / "deep")]) == 0
    head, _, first, second, note = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["run", "lr"] and "hidden" not in head
    assert first.split()[:2] == ["one", "0.01"] and second.split()[:2] == ["two", "0.001"]
    assert "best model on validation" in note


def test_table_says_what_has_not_ended(runs, capsys):
    result = runs / "one" / "result.json"
    kept = result.read_bytes()
    result.unlink()
    try:
        assert main(["table", str(runs / "one")]) == 0
        assert "one (unfinished)" in capsys.readouterr().out
    finally:
        result.write_bytes(kept)


def test_plot_draws_them(runs, capsys, tmp_path):
    out = tmp_path / "picture.png"
    assert main(["plot", str(runs / "one"), str(runs / "deep"), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and str(out) in capsys.readouterr().out


def test_what_does_not_fit_is_one_line(runs, capsys, tmp_path):
    assert "must be of one task" in refused(capsys, "table", runs)
    assert f"{tmp_path} holds no run" in refused(capsys, "runs", tmp_path)
    said = refused(capsys, "plot", runs / "one", "--metric", "joy", "--out", tmp_path / "x.png")
    assert "--metric must be one of solved, error; got 'joy'" in said
