"""make gpu: builds, tests and measures on a machine with a GPU and no network.

python -m benchmarks.gpu [--data FOLDER] [--out results/gpu] [--only STEP ...] [--minutes M] [--quick]

It uses the Python that runs it as it is, and installs nothing: the extension is built in the
checkout, for the GPU that is there unless TORCH_CUDA_ARCH_LIST says otherwise. A step that fails or
takes longer than its limit is named, what it has written stays, the others go on, and the exit code
is 1. Nothing here imports dnirnn, which is not built before the first step.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Truncation, estimator, and its options: at this width a predictor fitted at 1e-3 trains on its own noise.
ARMS = ((8, "none", ()), (40, "none", ()), (8, "dni", ("--estimator-lr", "3e-5")))
HIDDEN, BATCH = 1024, 128
# What all arms train with: one low rate, constant; evaluated some times in five minutes, not every second.
TRAINING = ("--dtype", "bfloat16", "--lr", "5e-4", "--decay", "none")
EVERY = "20000000"
NEEDED = {
    "kernels": (),
    "build": ("torch", "setuptools"),
    "laws": ("torch", "pytest", "hypothesis", "numpy", "safetensors", "tqdm"),
    "train": ("torch", "numpy", "safetensors", "tqdm"),
    "sanitizer": ("torch", "pytest", "hypothesis", "numpy", "safetensors", "tqdm"),
    "benchmark": ("torch", "numpy", "safetensors", "tqdm"),
    "ptb": ("torch", "numpy", "safetensors", "tqdm"),
}
# Seconds after which a step is ended; of the benchmark and of ptb beside what they are asked for.
LIMITS = {
    "kernels": 60, "build": 300, "laws": 200, "train": 120, "sanitizer": 150, "benchmark": 420, "ptb": 90,
}  # fmt: skip
# The sanitizer slows a kernel down many times, and racecheck most: a few of the laws, of every kernel.
SANITIZED = {
    "memcheck": "(333 or 200 or narrow or linear) and float32 or deterministic",
    "racecheck": "(200 or narrow or linear) and float32 or deterministic",
}
LAWS = [f"tests/csrc/test_{name}.py" for name in ("cuda", "embedding", "regression", "fused_update")]


class Failed(Exception):
    """A step that did not do what it should; the message says what."""


class Skipped(Exception):
    """A step that can't be done here; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="of ptb.train.txt and its two: compares on them"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", metavar="FOLDER")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu", metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training an arm (default 5)")
    parser.add_argument("--quick", action="store_true", help="few points in the benchmark")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0; got {options.minutes}")
    if options.data is not None and not (options.data / "ptb.train.txt").exists():
        parser.error(f"--data must hold ptb.train.txt, ptb.valid.txt, ptb.test.txt; got {options.data}")
    options.out.mkdir(parents=True, exist_ok=True)
    found, failed = {}, False
    for name in options.only:
        began = time.monotonic()
        print(f"\n== {name}", flush=True)
        try:
            check_packages(name)
            outcome = STEPS[name](options)
            state = "done"
        except Skipped as why:
            outcome, state = str(why), "skipped"
        except Failed as why:
            outcome, state, failed = str(why), "failed", True
        found[name] = {"state": state, "outcome": outcome, "seconds": round(time.monotonic() - began, 1)}
        print(f"{name}: {state}{f', {outcome}' if outcome else ''}", flush=True)
        (options.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten to {options.out}")
    return int(failed)


def check_packages(step: str) -> None:
    missing = [name for name in NEEDED[step] if importlib.util.find_spec(name) is None]
    if missing:
        words = " ".join(missing)
        raise Failed(
            f"{sys.executable} has no {', '.join(missing)}: on a machine with a network run `pip"
            f" download {words} -d wheels`, here `pip install --no-index --find-links wheels {words}`"
        )


def run(words: Sequence[str], log: Path, limit: float, **more: str) -> str:
    """Runs a program in the checkout, on the screen and in ``log``; what it wrote.

    limit: seconds after which it is ended, with all that it started. Raises Failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **more}
    environment["PYTHONUNBUFFERED"] = "1"
    lines, late = [], threading.Event()
    with open(log, "w", encoding="utf-8") as file, subprocess.Popen(
        list(words), cwd=ROOT, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
                lines.append(line)
            process.wait()
        except BaseException:  # a step that outlives its end would be in the next one's figures
            end()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise Failed(f"took longer than {limit:g} s: {log}")
    if process.returncode:
        raise Failed(f"exit code {process.returncode}: {log}")
    return "".join(lines)


def kernels(options: argparse.Namespace) -> str:
    """The kernels of all steps alone, without torch: checked and timed in half a minute."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None:
        raise Skipped("no nvcc in CUDA_HOME or on the PATH")
    program = options.out.resolve() / "on_chip"
    words = [nvcc, "-O3", "-std=c++20", "-arch=native", "-I", "csrc", "-o", str(program)]
    run([*words, "benchmarks/on_chip.cu"], options.out / "kernels-build.txt", LIMITS["build"])
    try:
        run([str(program)], options.out / "kernels.txt", LIMITS["kernels"])
    finally:
        program.unlink(missing_ok=True)
    return str(options.out / "kernels.txt")


def build(options: argparse.Namespace) -> str:
    """The extension in the checkout, where dnirnn.tasks becomes a link to tasks/."""
    link = ROOT / "dnirnn" / "tasks"
    if not link.is_symlink() and not link.exists():
        link.symlink_to(Path("..", "tasks"))
    words, log = [sys.executable, "setup.py", "build_ext", "--inplace"], options.out / "build.txt"
    run(words, log, LIMITS["build"], **architecture())
    run([sys.executable, "-m", "dnirnn", "doctor"], options.out / "doctor.txt", 60)
    return built_for_cuda()


def architecture() -> dict[str, str]:
    """The GPU's own, where nobody asked for another: one is compiled faster than three."""
    words = "import torch; print(*torch.cuda.get_device_capability(), sep='.')"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    if os.environ.get("TORCH_CUDA_ARCH_LIST") or done.returncode:
        return {}
    return {"TORCH_CUDA_ARCH_LIST": done.stdout.strip()}


def built_for_cuda() -> str:
    words = "import torch; from dnirnn import ops; print(ops.built_for('cuda'), torch.cuda.is_available())"
    outcome = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if outcome[:1] != ["True"]:
        raise Failed("the extension was built without its CUDA kernels: build.txt says why")
    if outcome[1:] != ["True"]:
        raise Failed("torch sees no CUDA device here")
    return "with the CUDA kernels"


def laws(options: argparse.Namespace) -> str:
    words = [sys.executable, "-m", "pytest", "-m", "cuda", "-v", "-p", "no:cacheprovider"]
    more = {}
    if importlib.util.find_spec("xdist"):
        # The time of most laws is the CPU's: what the GPU is held against is computed there.
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))
        words += ["-n", str(workers), "--dist", "worksteal"]
        more = {"OMP_NUM_THREADS": "2"}
    outcome = run(words, options.out / "laws.txt", LIMITS["laws"], **more).strip().splitlines()[-1]
    if " passed" not in outcome:
        raise Failed(f"no law was run: {outcome}")
    return outcome


def train(options: argparse.Namespace) -> str:
    """Half a minute of a character model, each update eager and each a graph's replay: both learn."""
    bits = {}
    for name, more in (("eager", ["--no-graphs"]), ("graphs", [])):
        folder = options.runs / f"train-{name}"
        data = ["--corpus", "ptb", "--data-dir", str(options.data.resolve())] if options.data else [
            "--text", str(ROOT / "README.md")]  # fmt: skip
        words = [
            sys.executable, "-m", "dnirnn", "train", "char-lm", *data, "--hidden", "256",
            "--truncation", "8", "--estimator", "dni", "--minutes", "0.5", "--device", "cuda",
            "--quiet", "--out", str(folder), *more,
        ]  # fmt: skip
        run(words, options.out / f"train-{name}.txt", LIMITS["train"])
        result = json.loads((folder / "result.json").read_text())
        bits[name] = f"{result['symbols']:,} characters, {result['best']['bits']:.3f} bits"
    return "; ".join(f"{name}: {found}" for name, found in bits.items())


def sanitizer(options: argparse.Namespace) -> str:
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise Skipped("compute-sanitizer is not on the PATH")
    for tool, some in SANITIZED.items():
        run(
            [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-m",
             "cuda", "-q", "-p", "no:cacheprovider", *LAWS, "-k", some],
            options.out / f"sanitizer-{tool}.txt", LIMITS["sanitizer"],
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )  # fmt: skip
    return " and ".join(SANITIZED)


def benchmark(options: argparse.Namespace) -> str:
    out = options.out / "benchmark.json"
    quick = ["--quick"] if options.quick else []
    words = [sys.executable, "-m", "benchmarks", "cuda", "--out", str(out), *quick]
    run(words, options.out / "benchmark.txt", LIMITS["benchmark"])
    if json.loads(out.read_text())["cuda"] is None:
        raise Failed("it found no GPU")
    return str(out)


def ptb(options: argparse.Namespace) -> str:
    """BPTT over 8 and 40 steps and DNI over 8, an arm after the other, each so many minutes."""
    if options.data is None:
        raise Skipped("no --data: a folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt")
    rows = []
    for truncation, estimator, more in ARMS:
        name = f"ptb-{HIDDEN}-T{truncation}-{estimator}"
        folder = options.runs / name
        words = [
            sys.executable, "-m", "dnirnn", "train", "char-lm", "--corpus", "ptb",
            "--data-dir", str(options.data.resolve()), "--hidden", str(HIDDEN),
            "--batch", str(BATCH), "--truncation", str(truncation), "--estimator", estimator,
            *TRAINING, "--evaluate-every", EVERY, "--minutes", str(options.minutes), "--device", "cuda", "--quiet",
            "--out", str(folder), *more,
        ]  # fmt: skip
        run(words, options.out / f"{name}.txt", LIMITS["ptb"] + 60 * options.minutes)
        rows.append(row_of(truncation, estimator, json.loads((folder / "result.json").read_text())))
        (options.out / "ptb.json").write_text(json.dumps(rows, indent=1) + "\n")
    table = table_of(rows)
    (options.out / "ptb.txt").write_text(table)
    print(table, end="")
    return str(options.out / "ptb.txt")


def row_of(truncation: int, estimator: str, result: dict) -> dict:
    return {
        "truncation": truncation,
        "estimator": estimator,
        "hidden": HIDDEN,
        "batch": BATCH,
        "seconds": result["seconds"],
        "characters": result["symbols"],
        "characters_per_second": result["symbols"] / result["seconds"],
        "valid_bits": result["best"]["bits"],
        "test_bits": result["test"]["test_bits"],
    }


def table_of(rows: Sequence[dict]) -> str:
    lines = [
        f"Penn Treebank characters, {HIDDEN} units, {BATCH} sequences, {' '.join(TRAINING)}",
        f"{'steps':>5} {'estimator':>9} {'characters/s':>13} {'characters':>13} {'seconds':>8}"
        f" {'valid bits':>10} {'test bits':>10}",
    ]
    lines += [
        f"{row['truncation']:5} {row['estimator']:>9} {row['characters_per_second']:13,.0f}"
        f" {row['characters']:13,} {row['seconds']:8,.0f} {row['valid_bits']:10.4f}"
        f" {row['test_bits']:10.4f}"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


STEPS: dict[str, Callable[[argparse.Namespace], str]] = {
    "kernels": kernels,
    "build": build,
    "laws": laws,
    "train": train,
    "sanitizer": sanitizer,
    "benchmark": benchmark,
    "ptb": ptb,
}

if __name__ == "__main__":
    sys.exit(main())
