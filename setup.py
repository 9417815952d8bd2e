"""Builds dnirnn._C against the torch that is installed. Everything else is in pyproject.toml."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit(
        "dnirnn is built against the torch that is installed, and there is none here: "
        "install torch, then run pip install --no-build-isolation ."
    )


class Build(BuildExtension):
    """Builds the extension, and writes down beside it what it was built for."""

    def run(self):
        super().run()
        record = json.dumps({"torch": torch.__version__, "compiler": compiler()}) + "\n"
        for extension in self.extensions:
            # get_ext_fullpath follows --inplace, which an editable installation sets.
            Path(self.get_ext_fullpath(extension.name)).with_name("_build.json").write_text(record)


def compiler() -> str | None:
    """The C++ compiler's name, or None where there is none."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name)), None)


def cuda_toolkit() -> Path | None:
    """The folder of a CUDA toolkit that this torch can be extended with, or None, saying why."""
    if torch.version.cuda is None:
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home and not shutil.which("nvcc"):
        home = cpp_extension.CUDA_HOME  # where torch looks at last: /usr/local/cuda
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    problem = "no CUDA toolkit found (CUDA_HOME is not set, and there is no nvcc on the PATH)"
    if nvcc and shutil.which(nvcc):
        # nvcc itself says where it lives: the one on the PATH may be a link or a script.
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True
        ).stderr
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"^#\$ _THERE_=(.*)$", dry_run, re.MULTILINE)
        home = Path(found[1]).parent if found else Path(nvcc).resolve().parent.parent
        release = re.search(r"release (\d+)\.\d+", version)
        if not (home / "include" / "cuda_runtime.h").exists():
            problem = f"no cuda_runtime.h in {home / 'include'}"
        elif release is None or release[1] != torch.version.cuda.split(".")[0]:
            problem = f"{nvcc} is of CUDA {release[1] if release else 'unknown'}"
        else:
            return home
    print(
        f"dnirnn: torch has CUDA {torch.version.cuda}, but {problem}; building for the CPU alone."
        " On a GPU it runs on the reference path: same results, slower.",
        file=sys.stderr,
    )
    return None


def extensions() -> list:
    if compiler() is None:
        print(
            "dnirnn: no C++ compiler found; installing without the fused operators."
            " It runs on the reference path: same results, slower.",
            file=sys.stderr,
        )
        return []
    openmp = [] if platform.system() == "Darwin" else ["-fopenmp"]
    # -g0: Python's own -g takes compile time, and makes a module of 50 MB of one of 2.
    flags = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *openmp]
    toolkit = cuda_toolkit()
    if toolkit:
        cpp_extension.CUDA_HOME = str(toolkit)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    sources = sorted(
        str(path)
        for path in Path("csrc").rglob("*.c*")
        if toolkit or Path("csrc", "cuda") not in path.parents
    )
    headers = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    return [
        (CUDAExtension if toolkit else CppExtension)(
            "dnirnn._C",
            sources,
            include_dirs=[str(Path("csrc").resolve())],
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
            extra_link_args=openmp,
            depends=headers,
        )
    ]


# Ampere and Hopper, and code that later ones compile for themselves.
CUDA_ARCHITECTURES = "8.0;9.0+PTX"


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
