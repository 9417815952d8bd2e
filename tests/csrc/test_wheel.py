"""A wheel holds all that is needed where there is no compiler."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dnirnn import ops

ROOT = Path(__file__).parents[2]

TRAIN = """
import sys
sys.path[:0] = [sys.argv.pop(1)]
import dnirnn, dnirnn.ops
from dnirnn.commands.cli import main
code = main(sys.argv[1:])
print(dnirnn.__file__, dnirnn.ops.built, code)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """What pip unpacks of a wheel of this tree. The extension is the one that is built here."""
    folder = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns("_C*", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "dnirnn", folder / "dnirnn", symlinks=True, ignore=left)
    (folder / "dnirnn" / "tasks").unlink(missing_ok=True)
    for name in ("tasks", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=left)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)

    def setup(*words: str) -> None:
        command = [sys.executable, "setup.py", "-q", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    (folder / "setup.cfg").write_text("[build]\nbuild_lib = build/lib\n")
    setup("build_py")
    for pattern in ("_C*.so", "_build.json"):
        for path in (ROOT / "dnirnn").glob(pattern):
            shutil.copy(path, folder / "build" / "lib" / "dnirnn")
    setup("bdist_wheel", "--skip-build", "--dist-dir", "dist")
    (wheel,) = (folder / "dist").glob("dnirnn-*.whl")
    assert "none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as unpacked:
        unpacked.extractall(folder / "site")
    return folder / "site"


@pytest.mark.skipif(not ops.built, reason="the extension is not built here")
def test_it_trains_without_a_compiler_and_without_the_tree(site, tmp_path):
    words = f"train copy --updates 1 --hidden 4 --batch 2 --quiet --out {tmp_path}/run".split()
    without = os.environ | {"PATH": str(tmp_path), "CXX": "", "CC": ""}
    command = [sys.executable, "-c", TRAIN, str(site), *words]
    done = subprocess.run(command, cwd=tmp_path, env=without, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [f"{site}/dnirnn/__init__.py True 0"], done.stderr
    assert (tmp_path / "run" / "result.json").exists()


def test_every_module_and_every_file_that_is_read_is_in_it(site):
    def files(folder: Path, pattern: str) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob(pattern)}

    for pattern in ("*.py", "*.json", "py.typed"):
        assert files(ROOT / "tasks", pattern) <= files(site / "dnirnn" / "tasks", pattern)
        own = {p for p in files(ROOT / "dnirnn", pattern) if p.parts[0] != "tasks"}
        assert own - {Path("_build.json")} <= files(site / "dnirnn", pattern)
    (names,) = site.glob("dnirnn-*.dist-info/entry_points.txt")
    assert "dnirnn.tasks" in names.read_text() and "dnirnn.commands.cli:main" in names.read_text()
