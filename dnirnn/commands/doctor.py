"""dnirnn doctor: what is built, what the machine offers, and which path each operator takes."""

import argparse
import importlib.util
import platform
from collections.abc import Iterator, Sequence

import torch

import dnirnn
from dnirnn import ops
from dnirnn.commands.shared import OK
from dnirnn.device import usable_cores


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    print(report())
    return OK


def report() -> str:
    """The whole report, in aligned lines of name and finding, then what to do."""
    findings = list(examine())
    width = max(len(name) for name, _ in findings)
    lines = [f"{name:<{width}}  {finding}" for name, finding in findings]
    advice = list(advise())
    lines += ["", *(f"- {line}" for line in advice)] if advice else ["", "Nothing is missing."]
    return "\n".join(lines)


def examine() -> Iterator[tuple[str, str]]:
    yield "dnirnn", f"{dnirnn.__version__}, Python {platform.python_version()}"
    yield "torch", f"{torch.__version__}, {cuda_of_torch()}"
    yield "machine", f"{platform.system()} {platform.machine()}, {processor()}"
    yield "cores", f"{usable_cores()} usable, {torch.get_num_threads()} threads in use"
    yield "vector path of torch", torch.backends.cpu.get_cpu_capability()
    yield "GPU", gpus()
    yield from ops.describe().items()
    yield "GRU, RNN by FromTorch", "torch's own, one call a chunk"
    yield "estimator's regression", "fused" if ops.built else "reference path (autograd)"
    for package, use in PACKAGES.items():
        yield package, f"{'found' if has(package) else 'missing'}; {use}"


PACKAGES = {
    "datasets": "downloads Penn Treebank",
    "matplotlib": "draws the plots of compare, demo, reproduce, fidelity and detectors",
    "tensorboard": "train --tensorboard",
}


def advise() -> Iterator[str]:
    """What to do about what is missing, a sentence each."""
    if not ops.built:
        yield (
            "Install a C++ compiler and run `pip install --no-build-isolation .` in the checkout:"
            " the fused operators are faster; results are the same without."
        )
    elif torch.version.cuda and not ops.built_for("cuda"):
        yield (
            f"torch has CUDA {torch.version.cuda}, and dnirnn was built without: with that CUDA's"
            " toolkit (nvcc on the PATH, or CUDA_HOME) run `pip install --no-build-isolation ."
            " --force-reinstall --no-deps` in the checkout, for fused operators on a GPU."
        )
    if torch.get_num_threads() > usable_cores():
        yield (
            f"torch uses {torch.get_num_threads()} threads on {usable_cores()} cores:"
            " set OMP_NUM_THREADS or pass --threads."
        )
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        yield "torch uses no vector instructions here: is ATEN_CPU_CAPABILITY set?"
    if not torch.backends.mkldnn.is_available():
        yield "This torch has no oneDNN: products run on its plain BLAS."
    for package, use in PACKAGES.items():
        if not has(package):
            yield f"`pip install {package}` for what it serves here: {use}."


def cuda_of_torch() -> str:
    return f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU"


def gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def processor() -> str:
    """The CPU's name, and those of its features that matter to matrix products."""
    try:
        with open("/proc/cpuinfo") as lines:
            fields = dict(
                (part.strip() for part in line.split(":", 1)) for line in lines if ":" in line
            )
    except OSError:
        return platform.processor() or "unknown processor"
    name = fields.get("model name", platform.processor() or "unknown processor")
    present = set(fields.get("flags", fields.get("Features", "")).split())
    features = [feature for feature in FEATURES if feature in present]
    return f"{name} ({', '.join(features) or 'no vector features known here'})"


FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd",
            "sve", "bf16")


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
