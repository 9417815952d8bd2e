"""Builds dnirnn._C against the torch that is installed. Everything else is in pyproject.toml."""

import json
import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
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


def extensions() -> list:
    if compiler() is None:
        print(
            "dnirnn: no C++ compiler found; installing without the fused operators."
            " It runs on the reference path: same results, slower.",
            file=sys.stderr,
        )
        return []
    openmp = [] if platform.system() == "Darwin" else ["-fopenmp"]
    flags = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *openmp]
    sources = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))
    headers = sorted(str(path) for path in Path("csrc").rglob("*.h"))
    return [
        CppExtension(
            "dnirnn._C",
            sources,
            include_dirs=[str(Path("csrc").resolve())],
            extra_compile_args=flags,
            extra_link_args=openmp,
            depends=headers,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
