"""Imports run one way, in Python and in C++, and the heavy ones wait until they are needed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dnirnn

ROOT = Path(__file__).parents[2]

# Each module may import those before its line, and, without a cycle, those on it.
ORDER = [
    {"version", "checks", "options", "renamed", "groups"},
    {"files", "progress", "fakes"},
    {"unroll", "deprecated", "boundary", "ops", "data", "device", "masks", "loss"},
    {"core", "scanned", "estimators", "interface", "true_gradient", "cuts", "decoupled", "weight_drop",
     "embedding"},
    {"lstm", "fused_layers", "from_torch", "truncated", "feedforward"},
    {"cells"},
    {"stacks", "hierarchy"},
    {"model"},
    {
        "fidelity", "distillation", "codistillation", "distributed", "dynamic_evaluation", "messages",
        "parallel", "hierarchy_parallel", "horizon", "testing",
    },
    {"training"},
    {"trainer"},  # where training.trainer was
    {"config"},
    {"reports"},
    {"commands"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
PACKAGE = sorted(p for p in (ROOT / "dnirnn").rglob("*.py") if p.name != "__init__.py")
TASKS = sorted((ROOT / "tasks").rglob("*.py"))


def module_of(path: Path) -> str:
    """dnirnn/stacks/clockwork.py is of stacks."""
    return path.relative_to(ROOT / "dnirnn").with_suffix("").parts[0]


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """The dotted names that a file imports; `from a import b` counts as a.b."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_from_dnirnn(path: Path) -> set[str]:
    parts = (name.split(".") for name in imports_of(path))
    return {p[1] for p in parts if p[0] == "dnirnn" and len(p) > 1} - {"_C"}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.name)
def test_imports_run_one_way(path):
    name = module_of(path)
    assert name in RANK, f"{name} has no place in the order: say in this test where it stands"
    # What stands above all that dnirnn itself imports may take it from there.
    public = set(dnirnn.__all__) if RANK[name] > RANK["model"] else set()
    for other in imported_from_dnirnn(path) - {name} - public:
        assert other in RANK, f"{name} imports dnirnn.{other}, which is no module of the order"
        assert RANK[other] <= RANK[name], f"{name} imports {other}, which stands above it"


def test_there_is_no_cycle():
    """Not between rooms, nor between the files of one."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE}
    edges = {}
    for name, path in files.items():
        needs = {f"{needed}." for needed in imports_of(path)}
        edges[name] = {other for other in files if any(n.startswith(f"{other}.") for n in needs)}
    while edges:
        free = {name for name, needs in edges.items() if not (needs - {name}) & set(edges)}
        assert free, f"these import one another in a circle: {sorted(edges)}"
        edges = {name: needs for name, needs in edges.items() if name not in free}


def test_the_package_never_imports_tasks():
    for path in PACKAGE:
        names = imports_of(path)
        assert not [n for n in names if n.split(".")[0] == "tasks" or "dnirnn.tasks" in n], path


@pytest.mark.parametrize("path", [*PACKAGE, *TASKS], ids=lambda p: p.name)
def test_nothing_that_loads_data_or_unpickles_is_imported_at_the_top(path):
    top = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    assert not top & {"datasets", "tensorboard", "pyarrow", "pandas", "sklearn"}
    everywhere = {name.split(".")[0] for name in imports_of(path)}
    assert not everywhere & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    loads = re.search(r"(?<!safetensors\.)torch\.load\(", path.read_text())
    assert not loads, "checkpoints are never unpickled"


@pytest.mark.parametrize("module", ["dnirnn", "dnirnn.training.trainer", "dnirnn.commands.cli"])
def test_importing_does_not_import_datasets(module):
    program = f"import sys, {module}; print(*(m for m in {HEAVY} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    if module.startswith("dnirnn.tasks") and "No module named 'dnirnn.tasks'" in result.stderr:
        pytest.skip("dnirnn.tasks is not installed here (run make)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


HEAVY = ("datasets", "tensorboard", "pandas", "pyarrow", "matplotlib", "sklearn")


# C++: lstm_cell.h <- cells.h <- driver <- cpu, cuda; ops.cpp reaches the devices only through the dispatcher.


def includes_of(path: Path) -> set[str]:
    return set(re.findall(r'^#include "([^"]+)"', path.read_text(), re.M))


SOURCES = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "csrc")))
def test_includes_run_one_way(path):
    included = includes_of(path)
    folder = path.relative_to(ROOT / "csrc").parts[0]
    assert all((ROOT / "csrc" / name).exists() for name in included), included
    devices = {name for name in included if "/" in name}
    if folder in ("cpu", "cuda"):
        assert {name.split("/")[0] for name in devices} <= {folder}, "one device's only"
    elif path.suffix == ".h":
        assert not devices, "what all devices share includes none of them"
    else:
        assert not {"lstm_cell.h", "cells.h"} & included, "the equations belong to the devices"
        assert not {name for name in devices if "impl" in name}


def test_the_equations_include_no_torch():
    """Nor do CUDA kernels, so that nvcc compiles them where torch has no CUDA."""
    for path in SOURCES:
        if path.name in ("lstm_cell.h", "cells.h") or path.suffix in {".cu", ".cuh"}:
            assert not re.search(r"#include <(torch|ATen|c10)/", path.read_text()), path.name
