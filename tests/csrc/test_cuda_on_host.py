"""The GPU's drivers and kernels without a GPU: compiled for the host, under the CPU's own laws.

tests/cuda_on_host stands for what they use of CUDA. What only a GPU shows is left: how it orders
memory, and how fast it is.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from dnirnn import ops

ROOT = Path(__file__).parents[2]
SEAM = ROOT / "tests" / "cuda_on_host"

pytestmark = pytest.mark.skipif(
    not ops.built or shutil.which("g++") is None,
    reason="it takes g++ and the extension, whose operators it gives other kernels",
)


@pytest.fixture(scope="session")
def library() -> Path:
    """The shared object, built where none of its sources has changed since the last time."""
    parts = sorted((ROOT / "csrc" / "cuda").glob("*.c*"))
    read = [*parts, *SEAM.rglob("*.h"), *ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cuda/*.h")]
    sources = hashlib.sha256(torch.__version__.encode())
    for path in sorted(read):
        sources.update(path.read_bytes())
    made = ROOT / "build" / "cuda_on_host" / f"{sources.hexdigest()[:16]}.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        for stale in set(made.parent.glob("*.so")) - {made}:
            stale.unlink(missing_ok=True)
        # In a folder of its own: another process of the same run may be at it too.
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            build(parts, Path(folder, "all.cpp")).rename(made)
    return made


def build(parts: list[Path], source: Path) -> Path:
    source.write_text("".join(f'#include "cuda/{part.name}"\n' for part in parts))  # torch's headers once
    includes = [f"-I{path}" for path in (SEAM, ROOT / "csrc", *cpp_extension.include_paths())]
    where = [f"-L{path}" for path in cpp_extension.library_paths()]
    built = source.with_suffix(".so")
    done = subprocess.run(
        ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", *includes, source, *where, "-lc10",
         "-ltorch_cpu", "-o", built],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return built


def test_the_laws_of_the_operator(library):
    """test_op and test_op_graph, but for the CPU's threads and vectors, and the estimator."""
    laws = ["csrc/test_op.py", "csrc/test_op_graph.py"]
    laws += ["estimators/test_aux.py", "estimators/test_dense.py"]
    laws.append("cuda_on_host/on_chip.py")
    run(library, laws, 150)


def test_the_end_of_an_update(library):
    run(library, ["csrc/test_fused_update.py", "csrc/test_regression.py"], 30)


def test_the_gradient_of_an_embedding(library):
    run(library, ["csrc/test_embedding.py"], 25)


def run(library: Path, laws: list[str], least: int) -> None:
    """In the emulation: all pass, so many at least."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "load", "-p", "no:cacheprovider",
         "-m", "not cuda", "-k",
         # All steps in one kernel: only what it computes, which takes its time here. A direct call
         # of the backward operator is checked on the CPU alone.
         "not threads and not vector_path and not bad_input_of_the_backward_operator"
         " and (steps or tf32 or not_a_number or chosen or equals_the_loop and not float64)",
         *laws],
        cwd=ROOT / "tests",
        env=os.environ | {"DNIRNN_CUDA_ON_HOST": str(library), "PYTHONPATH": os.pathsep.join(
            [str(SEAM), str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > least
