"""Recipes: options for the best model in given minutes, a file each, which a person can read and change.

A task keeps them in the folder ``recipes`` beside its module, as JSON: its options by name, "task", and
"recipe": what it is for and what was measured:

    "recipe": {"for": "5 minutes on two cores",
               "measured": {"figures": "1.4712 bits, 1.4420 dynamic", "of": "Penn Treebank, test, 3 seeds",
                            "machine": "2 cores of an AMD EPYC (Zen 5)", "commit": "0123abc"}}

"measured" is null as long as nothing was.
"""

import json
from importlib import resources
from typing import Any

from dnirnn import ops
from dnirnn.config.registry import TASKS

# Of a recipe's file, what is no option.
BESIDE = ("task", "recipe")


def recipes(task: str) -> dict[str, Any]:
    """The files of a task's recipes by name."""
    if not hasattr(TASKS[task], "__path__"):  # a module, with nothing beside it that is its own
        return {}
    folder = resources.files(TASKS[task]) / "recipes"
    files = folder.iterdir() if folder.is_dir() else ()
    found = {file.name[: -len(".json")]: file for file in files if file.name.endswith(".json")}
    return {name: found[name] for name in sorted(found, key=lambda name: (name[:3], len(name), name))}


def read(task: str, name: str) -> tuple[dict[str, Any], list[str]]:
    """(the options that a recipe gives, lines on what it is and what to expect of it)."""
    file = recipes(task)[name]
    known = json.loads(file.read_text())
    values = {key: value for key, value in known.items() if key not in BESIDE}
    lines = [f"recipe {name}: {known['recipe']['for']}; {file}"]
    found = known["recipe"]["measured"]
    if found is None:
        lines.append("what to expect: not measured yet")
    else:
        lines.append(
            f"what to expect: {found['figures']} ({found['of']}), measured on {found['machine']} at"
            f" {found['commit']}"
        )
    on_gpu = values.get("device", "cpu") != "cpu"
    if values.get("dtype") == "bfloat16" and not on_gpu and not ops.multiplies_bfloat16():
        values["dtype"] = "float32"
        lines.append("this CPU does not multiply bfloat16: float32 in its place")
    return values, lines
