"""Small tables, made in this process."""

import pytest

from dnirnn.commands import training
from dnirnn.commands.cli import main
from dnirnn.reports import plots, recipes, runs
from dnirnn.training.trainer import NonFinite


class Inside:
    """A run in this process, where a process of its own would only take longer."""

    begun: list[str] = []

    def __init__(self, task, run):
        self.run, self.reason = run, None
        self.begun.append(run.name)
        try:
            training.train(task, run.options, run.folder)
        except NonFinite as error:
            self.reason = str(error)

    def ended(self):
        return True

    def share(self):
        return 1.0

    def failure(self):
        return [] if self.reason is None else [runs.Failure(self.run.name, self.reason)]


@pytest.fixture
def made(monkeypatch, tmp_path):
    """made(recipe, *words) makes the table "copy" of a recipe: (exit code, the runs it began)."""
    monkeypatch.setattr(runs, "Child", Inside)
    monkeypatch.setattr(runs, "POLL_SECONDS", 0)
    # The picture takes longer than all the rest, and has tests of its own.
    picture = lambda rows, path, *words: path.write_text("")  # noqa: E731
    monkeypatch.setattr(plots, "learning_curves", picture)
    monkeypatch.setattr(runs, "stop", lambda running: None)

    def make(recipe, *words):
        monkeypatch.setattr(Inside, "begun", [])
        monkeypatch.setitem(recipes.RECIPES, "copy", lambda budget: recipe)
        words = ["reproduce", "copy", "--out", str(tmp_path / "out"), "--jobs", "1", *words]
        return main(words), Inside.begun

    return make
