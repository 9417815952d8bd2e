"""Options: one definition each for Python, the command line and config.json, and all three agree."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.network import NetworkOptions
from dnirnn.config.registry import TASKS
from dnirnn.config.saved import from_config, identity, plain, read_values
from dnirnn.config.task import OF_NETWORKS
from dnirnn.core import CORES
from dnirnn.estimators.base import ESTIMATORS
from dnirnn.groups import every_option, flat
from dnirnn.options import Config, Registry
from dnirnn.tasks.copy import CopyOptions
from dnirnn.training.config import TrainerConfig, Training
from dnirnn.training.layout import upgraded
from dnirnn.training.run_folder import differing, read_config

OLD = Path(__file__).with_name("config_layout_1.json")
COPY = "--bits 1 --hidden 4 --batch 4 --truncation 2 --max-length 3 --quiet".split()


@pytest.mark.parametrize("name", TASKS)
def test_no_two_options_that_can_meet_have_one_name(name):
    """And where two that can't do, as every core's layers, one word is read alike for both."""
    kind = TASKS[name].Options
    own = [field.name for field in dataclasses.fields(kind)]
    choices = [field.metadata["registry"] for field in dataclasses.fields(kind)]
    families = [own] + [
        {field.name for config in registry.values() for field in dataclasses.fields(config)}
        for registry in choices
        if registry is not None
    ]
    names = [name for family in families for name in family]
    assert len(names) == len(set(names))
    for fields in every_option(kind).values():
        kinds = {(typing.get_args(f.type) or (f.type,))[0] for f in fields}
        assert len(kinds) == len({f.metadata["many"] for f in fields}) == 1


values = st.fixed_dictionaries(
    {"core": st.sampled_from(sorted(CORES)), "estimator": st.sampled_from(sorted(ESTIMATORS))},
    optional={
        "hidden": st.integers(1, 99),
        "lr": st.floats(1e-6, 1.0),
        "optimizer_options": st.just((("betas", (0.9, 0.99)),)),
        "update_steps": st.sampled_from([4, 16, "sequence"]),
        "minutes": st.floats(0.1, 9.0),
    },
)


@given(values)
def test_a_config_gives_its_options_back(values):
    options = CopyOptions(**values)
    config = json.loads(json.dumps({"task": "copy", **identity(options)}))
    assert from_config(CopyOptions, config) == dataclasses.replace(options, minutes=None)
    assert config.keys() - flat(options).keys() == {"task", "version", "defaults", "places"}
    assert dataclasses.replace(options) == options.but() == options


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(hiden=3), "^there is no option --hiden$"),
        (dict(hidden="wide"), "^--hidden must be an int of at least 1; got 'wide'"),
        (dict(hidden=True), "^--hidden must be an int of at least 1; got True"),
        (dict(core="dilated", dilations=4), "^--dilations must be a list; got 4"),
        (dict(core="dilated", dilations=(1, 0)), "^--dilations must be at least 1; got 0"),
        (dict(scale="much"), "^--scale must be a number of at least 0 or 'auto'; got 'much'"),
        (dict(dense=1), "^--dense must be true or false; got 1"),
        (dict(optimizer_options=("eps",)), "^--optimizer-options must be pairs"),
        (dict(core=3), "^--core must be one of .*; got 3"),
        (dict(core="gru", skip_cost=0.5), "^--skip-cost goes with --core skip only; got --core gru"),
        (dict(estimator="none", ramp=3), "^--ramp goes with --estimator .*dni.* only; got .* none"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(given, message):
    with pytest.raises(ValueError, match=message):
        CopyOptions(**given)


def test_a_trainer_is_told_every_training_option_once():
    """The settings of a Trainer are the options of the command line, those of networks, and two of its own."""
    names = [field.name for field in dataclasses.fields(TrainerConfig)]
    shared = [field.name for field in dataclasses.fields(Training)]
    assert set(names) - set(shared) == {"chunks", "checkpoint_every", *OF_NETWORKS}
    assert set(OF_NETWORKS) <= every_option(NetworkOptions).keys()
    for kind in (task.Options for task in TASKS.values()):
        assert set(shared) <= every_option(kind).keys()


def test_the_old_names_of_a_trainers_settings_are_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match="options is now optimizer_options"):
        old = TrainerConfig(updates=1, options={"eps": 1e-6})
    assert old == TrainerConfig(updates=1, optimizer_options={"eps": 1e-6})
    assert TrainerConfig(updates=1, clip=0, min_norm=0.0) == TrainerConfig(updates=1, clip=None)
    with pytest.raises(TypeError, match="TrainerConfig has no setting speed"):
        TrainerConfig(updates=1, speed=3)


def test_a_name_is_entered_once():
    class Wheel(Config):
        registry = Registry("wheel")

    class Round(Wheel, name="round"):
        """rolls"""

    with pytest.raises(ValueError, match="there are two of the wheel round"):

        class Square(Wheel, name="round"):
            """does not"""

    assert list(Wheel.registry) == ["round"] and Wheel.registry["round"] is Round


# --config


@pytest.fixture
def copied(tmp_path):
    """copied(*words) trains copy in tmp_path/run; its exit code."""
    return lambda *words, out="run": main(["train", "copy", *words, "--out", str(tmp_path / out)])


def test_a_run_is_made_again_from_its_own_config(copied, tmp_path, capsys):
    assert copied(*COPY, "--core", "skip", "--skip-cost", "0.25", "--updates", "4") == 0
    config = ["--config", str(tmp_path / "run" / "config.json"), "--updates", "4", "--quiet"]
    assert copied(*config) == 0  # the same run, which is done
    assert copied(*config, out="again") == 0
    assert read_config(tmp_path / "again") == read_config(tmp_path / "run")
    assert copied(*config, "--skip-cost", "0.5", "--lr", "0.5", out="changed") == 0
    found = read_config(tmp_path / "changed")
    assert (found["core"], found["skip_cost"], found["lr"], found["bits"]) == ("skip", 0.5, 0.5, 1)
    assert copied(*config, "--core", "gru", out="another") == 0
    found = read_config(tmp_path / "another")
    assert (found["core"], found["hidden"], found.get("skip_cost")) == ("gru", 4, None)


BAD = {
    "a slip": ({"hiden": 3}, "there is no option --hiden"),
    "another core's": ({"periods": [1, 2]}, "--periods goes with --core clockwork or clockwork-lstm"),
    "another kind": ({"hidden": "x"}, "--hidden must be an int of at least 1; got 'x'"),
    "out of bounds": ({"lr": 0}, "--lr must be above 0; got 0"),
    "another task": ({"task": "adding"}, "is of the task adding; got copy"),
    "a later layout": ({"version": 3}, "is of layout 3; this version of dnirnn reads up to 2"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"task": "copy", **identity(CopyOptions(hidden=4)), **change}))
    words = ["train", "copy", "--config", str(path), "--out", str(tmp_path / "run")]
    refused(capsys, words, f"--config {path}:? .*{message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text, message", [(None, "can't be read"), ("{", "is not JSON"), ("[1]", "must hold an object")]
)
def test_a_file_that_is_no_config_is_refused(text, message, tmp_path, capsys):
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    refused(capsys, ["train", "copy", "--config", str(path)], f"--config {path} {message}")


@pytest.mark.parametrize("name, options", [
    ("char-lm", {}), ("digits", dict(windows=1)), ("images", dict(hidden=4)), ("adding", {}),
])  # fmt: skip
def test_a_config_of_any_task_is_taken_back(name, options, tmp_path):
    if name in ("digits", "images"):
        pytest.importorskip("sklearn")
    task = TASKS[name]
    options = task.Options(seed=5, **options)
    (tmp_path / "config.json").write_text(json.dumps(task.build(options).config))
    values = read_values(tmp_path / "config.json", name, task.Options, getattr(task, "FOUND", ()))
    assert task.Options(**values) == options


# Runs of before


def test_a_run_of_the_first_layout_is_the_same_run_today():
    """The options of all cores and estimators, and null for what depended on them."""
    old = json.loads(OLD.read_text())
    options = from_config(CopyOptions, upgraded(old))
    assert options == CopyOptions(
        core="deep", residual=True, bits=1, hidden=4, batch=4, truncation=2, max_length=3
    )
    assert options.core.layers == 2
    today = json.loads(json.dumps({"task": "copy", **identity(options)}))
    assert differing(old, today) == differing(today, old) == []
    other = {"task": "copy", **identity(options.but(layers=3, lr=1.0))}
    assert [key for key, *_ in differing(old, json.loads(json.dumps(other)))] == ["layers", "lr"]


def test_a_run_of_the_first_layout_is_opened_resumed_and_taken_as_a_config(copied, tmp_path, capsys):
    words = ["--core", "deep", "--residual", *COPY]
    assert copied(*words, "--updates", "3") == 0
    (tmp_path / "run" / "config.json").write_text(OLD.read_text())
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["table", str(tmp_path / "run")]) == 0
    config = ["--config", str(tmp_path / "run" / "config.json"), "--updates", "2", "--quiet"]
    assert copied(*config, out="again") == 0
    assert copied(*words, "--updates", "5") == 0
    assert read_config(tmp_path / "run") == read_config(tmp_path / "again")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["version"] == 2
    assert not (tmp_path / "run" / "history.jsonl").exists()


def test_a_configuration_of_a_trainer_alone_has_its_settings_renamed():
    old = {"lr": 0.1, "options": {"eps": 0.1}, "estimator_options": {}, "minutes": None}
    today = {"lr": 0.1, "optimizer_options": {"eps": 0.1}, "estimator_optimizer_options": {}, "minutes": None}
    assert upgraded(old) == today and differing(old, today) == []


# Cores and estimators of a person's own

MINE = '''
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dnirnn import Core, SyntheticGradient
from dnirnn.core import CoreConfig
from dnirnn.options import option


class Leaky(Core):
    """Leaks."""

    def __init__(self, input_size, hidden_size, leak=0.5):
        super().__init__()
        self.input_size, self.leak = input_size, leak
        self.output_size = self.state_size = hidden_size
        self.inward = nn.Linear(input_size, hidden_size)

    def step(self, x, state, t):
        state = self.leak * state + self.inward(x)
        return state, state


@dataclass(frozen=True)
class LeakyConfig(CoreConfig):
    """a leaky integrator"""

    leak: float | None = option(0.25, "what is left of the state after a step", above=0, below=1)

    def build(self, input_size):
        return Leaky(input_size, self.hidden, self.leak)


class Told(SyntheticGradient):
    pass
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_own_parts.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    for registry in (CORES, ESTIMATORS):
        monkeypatch.setattr(registry, "own", {})


def test_a_class_that_is_not_registered_trains_and_is_restored(mine, copied, tmp_path, capsys):
    words = [*COPY, "--core", "my_own_parts:Leaky", "--estimator", "my_own_parts:Told"]
    words += ["--estimator-options", "scale=0.5", "--updates", "3"]
    assert copied(*words, "--core-options", "leak=0.75") == 0
    config = read_config(tmp_path / "run")
    assert (config["core"], config["core_options"]) == ("my_own_parts:Leaky", [["leak", 0.75]])
    options = from_config(CopyOptions, config)
    made = TASKS["copy"].make(options)
    assert (made.truncated.core.leak, made.truncated.core.state_size) == (0.75, 4)
    assert made.truncated.estimator.scale == 0.5
    assert main(["eval", str(tmp_path / "run")]) == 0
    refused(capsys, ["train", "copy", *words, "--core-options", "speed=1"], "--core-options do not fit Leaky: .*'speed'")
    assert main(["compare", "copy", *words, "--truncations", "2", "--vary", "core", "lstm", "my_own_parts:Leaky",
                 "--out", str(tmp_path / "both")]) == 0  # fmt: skip
    assert "my_own_parts:Leaky" in capsys.readouterr().out


def test_a_config_of_ones_own_brings_its_flags(mine, copied, tmp_path, capsys):
    words = [*COPY, "--core", "my_own_parts:LeakyConfig", "--updates", "2"]
    assert copied(*words, "--leak", "0.75") == 0
    assert read_config(tmp_path / "run")["leak"] == 0.75
    refused(capsys, ["train", "copy", *words, "--leak", "2"], "--leak must be below 1; got 2.0")
    assert main(["train", "copy", "--core", "my_own_parts:LeakyConfig", "--help"]) == 0
    assert "what is left of the state after a step (default: 0.25)" in capsys.readouterr().out


def test_plain_values_are_those_of_json():
    given = ((("betas", (0.8, 0.9)),), {"eps": 1}, None, "word")
    assert plain(given) == json.loads(json.dumps(plain(given)))


