"""Recipes of train: files of options, which say first what to expect."""

import json

import pytest
from command_line import refused

from dnirnn import load, ops
from dnirnn.commands.cli import main
from dnirnn.config.recipes import BESIDE, read, recipes
from dnirnn.config.registry import TASKS

NAMES = ["cpu-5", "cpu-15", "cpu-60", "gpu-5", "gpu-15"]
SMALL = "--hidden 8 --embedding 4 --batch 4 --truncation 5 --updates 3 --threads 1 --quiet".split()


def test_a_recipe_is_a_file_of_options_that_say_for_what():
    assert list(recipes("char-lm")) == NAMES and recipes("copy") == {} == recipes("word-lm")
    for name in NAMES:
        known = json.loads(recipes("char-lm")[name].read_text())
        assert known["task"] == "char-lm" and set(known["recipe"]) == {"for", "measured"}
        options = TASKS["char-lm"].Options(**{k: v for k, v in known.items() if k not in BESIDE})
        assert options.minutes == float(name.split("-")[1])
        assert (options.device == "cuda") == name.startswith("gpu")


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_cpu_that_does_not_multiply_bfloat16_is_not_asked_to(monkeypatch, multiplies):
    monkeypatch.setattr(ops, "multiplies_bfloat16", lambda: multiplies)
    values, lines = read("char-lm", "cpu-5")
    assert values["dtype"] == ("bfloat16" if multiplies else "float32")
    assert any("does not multiply bfloat16" in line for line in lines) != multiplies
    assert read("char-lm", "gpu-5")[0]["dtype"] == "bfloat16"


def test_what_was_measured_is_said(monkeypatch, tmp_path):
    found = {"figures": "1.4 bits", "of": "a text", "machine": "a machine", "commit": "abc"}
    file = tmp_path / "cpu-1.json"
    file.write_text(json.dumps({"recipe": {"for": "a minute", "measured": found}, "minutes": 1.0}))
    monkeypatch.setattr("dnirnn.config.recipes.recipes", lambda task: {"cpu-1": file})
    values, lines = read("char-lm", "cpu-1")
    assert values == {"minutes": 1.0} and lines[0].startswith(f"recipe cpu-1: a minute; {file}")
    assert lines[1] == "what to expect: 1.4 bits (a text), measured on a machine at abc"


def test_the_command_trains_by_it_and_by_what_is_given(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "char-lm", "--recipe", "cpu-5", *SMALL, "--lr", "0.002", "--dropout", "0.0"]
    assert main([*words, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.index("recipe cpu-5: 5 minutes on two cores") < said.index("what to expect: ")
    config = load(run).config
    assert (config["hidden"], config["average"], config["lr_warm_up"]) == (8, 0.999, 200)
    refused(capsys, ["train", "char-lm", "--recipe", "cpu-7"], "invalid choice: 'cpu-7'")
    refused(capsys, ["train", "copy", "--recipe", "cpu-5"], "unrecognized arguments: --recipe")
