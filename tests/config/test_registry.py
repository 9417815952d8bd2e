"""Tasks are found, dnirnn's own and those that a person's package brings."""

import subprocess
import sys
import types
import warnings
from importlib.metadata import EntryPoint

import pytest

from dnirnn.config import registry
from dnirnn.config.registry import OWN, TASKS, Tasks

HAS = "Options FIGURES DATA DECAY UNIT EPOCHS build restore evaluate subject".split()


@pytest.fixture
def bring(monkeypatch):
    """bring(package=TASKS, ...): as if these packages were installed, and no others."""

    def bring(**packages):
        for name, tasks in packages.items():
            module = types.ModuleType(name)
            if tasks is not None:
                module.TASKS = tasks
            monkeypatch.setitem(sys.modules, name, module)
        points = [EntryPoint(name, name, "dnirnn.tasks") for name in packages]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        return Tasks()

    return bring


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_what_the_command_line_asks_of_it(name):
    assert [word for word in HAS if not hasattr(TASKS[name], word)] == []


def test_a_checkout_that_is_not_installed_has_its_own_tasks(bring):
    assert list(bring()) == list(TASKS)


def test_the_own_entry_point_changes_nothing(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("dnirnn", OWN, group)])
    assert list(Tasks()) == list(TASKS)


def test_a_package_brings_a_task(bring):
    tasks = bring(mine={"parity": "json"})
    assert list(tasks) == [*TASKS, "parity"]
    assert tasks["parity"].__name__ == "json"


def test_two_packages_may_not_bring_the_same_name(bring):
    with pytest.raises(ValueError, match=r"bring a task copy: dnirnn\.tasks\.copy and mine\.copy"):
        list(bring(mine={"copy": "mine.copy"}))


def test_a_package_without_tasks_is_named(bring):
    with pytest.raises(ValueError, match=r"empty, an entry point of dnirnn\.tasks, must have TASKS"):
        list(bring(empty=None))


def test_the_old_paths_work_and_say_so():
    program = "import warnings; warnings.simplefilter('error'); import dnirnn.trainer"
    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "dnirnn.trainer is now dnirnn.training.trainer" in failed.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dnirnn.trainer import Trainer
    from dnirnn.training.trainer import Trainer as moved

    assert Trainer is moved
