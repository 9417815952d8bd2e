"""The GPU's sources compile: the kernels wherever nvcc is, and setup.py takes them where it can."""

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
KERNELS = sorted(path.name for path in ROOT.glob("csrc/cuda/*.cu"))
DRIVERS = sorted(path.name for path in ROOT.glob("csrc/cuda/*.cpp"))

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")


def nvcc(*arguments) -> str:
    done = subprocess.run(["nvcc", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_no_two_sources_of_a_folder_become_one_object():
    """torch's build names an object after its source without the suffix: x.cpp and x.cu collide."""
    stems = [path.with_suffix("") for path in ROOT.glob("csrc/**/*.c*")]
    assert len(stems) == len(set(stems))


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_and_spill_nothing(name, architecture, tmp_path):
    # What torch's own builds define.
    plain = ["HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS"]
    said = nvcc(
        "-std=c++20", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-I", ROOT / "csrc",
        *(f"-D__CUDA_NO_{name}__" for name in plain),
        ROOT / "csrc" / "cuda" / name, "-o", tmp_path / "kernels.cubin",
    )  # fmt: skip
    spills = [line for line in said.splitlines() if "spill" in line]
    assert spills and all("0 bytes spill stores, 0 bytes spill loads" in line for line in spills)


@needs_nvcc
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_for_gpus_and_a_torch_of_before(name, tmp_path):
    """Without mma, which images that list all GPUs ask for; in C++17, as torch built up to 2.11."""
    words = ["-std=c++17", "-cubin", "-arch=sm_75", "-I", ROOT / "csrc"]
    nvcc(*words, ROOT / "csrc" / "cuda" / name, "-o", tmp_path / "kernels.cubin")


@needs_nvcc
def test_drivers_agree_with_torchs_headers(tmp_path):
    """As far as a torch without CUDA goes: it has the headers, but for one that CMake makes."""
    if not Path(cpp_extension.include_paths()[0], "c10", "cuda", "CUDAStream.h").exists():
        pytest.skip("this torch has no headers of CUDA's")
    one = tmp_path / "drivers.cpp"
    one.write_text("".join(f'#include "cuda/{name}"\n' for name in DRIVERS))
    nvcc(
        "-std=c++20", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", "-Xcompiler", "-fsyntax-only",
        "-I", ROOT / "csrc", *(f"-I{path}" for path in cpp_extension.include_paths()),
        "-c", one, "-o", tmp_path / "drivers.o",
    )  # fmt: skip


@pytest.fixture
def sources(monkeypatch, capsys):
    """sources(version, guess, **environment): what setup.py would compile for a torch of this CUDA.

    guess: the toolkit that torch found by itself. And what it says on stderr.
    """

    def run(version: str | None, guess: str | None = None, **environment) -> tuple[list[str], str]:
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", guess)
        monkeypatch.chdir(ROOT)
        for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TORCH_CUDA_ARCH_LIST": "", **environment}.items():
            monkeypatch.setenv(name, value)
        asked = {}
        monkeypatch.setattr(setuptools, "setup", lambda **arguments: asked.update(arguments))
        runpy.run_path("setup.py")
        return asked["ext_modules"][0].sources, capsys.readouterr().err

    return run


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder with a compiler that nobody will call."""
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "g++", "exit 1")
    return tmp_path / "bin"


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def toolkit(tmp_path: Path, release: str) -> Path:
    home = tmp_path / "toolkit"
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    script(
        home / "bin" / "nvcc",
        f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V1";;'
        f' *) echo "#$ _THERE_={home / "bin"}" >&2;; esac',
    )
    return home


def test_a_torch_without_cuda_builds_for_the_cpu_and_says_nothing(sources, tools, tmp_path):
    home = toolkit(tmp_path, "13.0")
    found, said = sources(None, PATH=str(tools), CUDA_HOME=str(home))
    assert found and not any("cuda" in path for path in found)
    assert "dnirnn" not in said


@pytest.mark.parametrize("by", ["CUDA_HOME", "a script on the PATH", "torch's guess"])
def test_a_torch_with_cuda_and_its_toolkit_builds_for_both(sources, tools, tmp_path, by):
    home = toolkit(tmp_path, "13.0")
    if by == "CUDA_HOME":
        environment = {"CUDA_HOME": str(home)}
    elif by == "torch's guess":
        environment = {"guess": str(home)}
    else:
        script(tools / "nvcc", f'exec {home / "bin" / "nvcc"} "$@"')
        environment = {}
    path = str(tools) if "guess" in environment else f"{tools}:/bin:/usr/bin"
    found, said = sources("13.0", PATH=path, **environment)
    assert {Path(path).name for path in found if "cuda" in path} == {*KERNELS, *DRIVERS}
    assert any("cpu" in path for path in found)
    assert "dnirnn" not in said


@pytest.mark.parametrize("case", ["nothing there", "another version", "no headers"])
def test_a_torch_with_cuda_and_no_toolkit_for_it_builds_for_the_cpu_and_says_why(
    sources, tools, tmp_path, case
):
    home, words = tmp_path / "toolkit", "no CUDA toolkit found"
    if case != "nothing there":
        toolkit(tmp_path, "12.8" if case == "another version" else "13.1")
        words = "is of CUDA 12"
    if case == "no headers":
        (home / "include" / "cuda_runtime.h").unlink()
        words = "no cuda_runtime.h in"
    found, said = sources("13.0", PATH=f"{tools}:/bin", CUDA_HOME=str(home))
    assert found and not any("cuda" in path for path in found)
    assert "torch has CUDA 13.0, but" in said and words in said
    assert "building for the CPU alone" in said
