"""compare: cores, truncations and estimators on one task, a run folder each, and what came out."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import IO, Any, NamedTuple

from dnirnn.log import read_log
from dnirnn.tasks import plots
from dnirnn.tasks.cores import described
from dnirnn.tasks.options import NetworkOptions, to_arguments, with_value
from dnirnn.tasks.progress import bar, fraction, move
from dnirnn.tasks.task import Figure, steps_per_update
from dnirnn.tasks.training import TASKS, figures_of
from dnirnn.trainer import RESULT, check_config, read_json

POLL_SECONDS = 0.2
STOP_SECONDS = 60.0  # what a run may take to finish its update and save


class Run(NamedTuple):
    """One run of a comparison; its folder is named after it."""

    name: str
    options: Any
    folder: Path

    def result(self) -> dict | None:
        """The result where the run has used up its budget."""
        result = read_json(self.folder / RESULT)
        if result is None:
            return None
        done = result["stopped"] == "patience" or fraction(self.options, result) >= 1
        return result if done else None


def plan(
    cores: Sequence[Any],
    folder: Path,
    arms: Sequence[tuple[int, str]],
    seeds: Sequence[int],
    rates: dict[tuple[str | None, int], float],
) -> list[Run]:
    """A run for each core, arm and seed, seed by seed.

    cores: the options of each core.
    arms: pairs of a truncation and an estimator.
    rates: learning rates of arms, by (estimator, truncation), or (None, truncation) for both.

    Raises ValueError for a rate of an arm that is not compared.
    """
    known = {*arms, *((truncation, None) for truncation, _ in arms)}
    for estimator, truncation in rates:
        if (truncation, estimator) not in known:
            arm = f"{truncation}" if estimator is None else f"{estimator}:{truncation}"
            raise ValueError(f"--lrs gives a rate for {arm}, which is not compared")
    runs = []
    for seed in dict.fromkeys(seeds):
        for options, (truncation, estimator) in product(cores, dict.fromkeys(arms)):
            rate = rates.get((None, truncation), options.lr)
            own = dataclasses.replace(
                options,
                **with_value(options, "estimator", estimator),
                truncation=truncation,
                seed=seed,
                lr=rates.get((estimator, truncation), rate),
                quiet=True,
            )
            steps_per_update(own)
            name = f"T{truncation}-{estimator}-seed{seed}"
            name = f"{options.core}-{name}" if len(cores) > 1 else name
            runs.append(Run(name, own, folder / name))
    return runs


def compare(task: str, runs: Sequence[Run], folder: Path, jobs: int, quiet: bool) -> list[str]:
    """Does the runs that are not done, ``jobs`` at once; writes and prints what came out.

    The folder gets results.csv, log.jsonl (the runs' logs in one) and curves.png. Returns the lines
    that say which runs failed, and why.

    Raises ValueError, before anything is run, where a run's folder holds another configuration.
    """
    ready = TASKS[task].build(runs[0].options)
    for run in runs:
        names = {*ARM, *(field.name for field in dataclasses.fields(NetworkOptions))}
        own = {name: getattr(run.options, name) for name in names}
        check_config(run.folder, json.loads(json.dumps({**ready.config, **own})))
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if run.result() is None]
    found = len(runs) - len(missing)
    print(ready.notice)
    print(
        f"{len(runs)} runs of {task} in {folder}"
        + (f", {found} of them done before (delete a folder to run it again)" if found else "")
        + (f"; {min(jobs, len(missing))} at a time" if missing else ""),
        flush=True,
    )
    failures = run_all(task, missing, jobs, quiet)
    report(task, runs, folder, ready.notice)
    return failures


def run_all(task: str, runs: Sequence[Run], jobs: int, quiet: bool) -> list[str]:
    """Does the runs as processes of their own, ``jobs`` at once; the failures, a line each.

    On Ctrl-C every process saves and ends before KeyboardInterrupt goes on.
    """
    waiting, running, failures, done = list(runs), [], [], 0
    progress = bar(quiet, "compare ")
    with terminated_like_interrupted():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(Child(task, waiting.pop(0)))
                time.sleep(POLL_SECONDS)
                for child in [child for child in running if child.ended()]:
                    running.remove(child)
                    done += 1
                    failures += child.failure()
                shares = done + sum(child.share() for child in running)
                names = ", ".join(child.run.name for child in running)
                progress.set_postfix_str(f"{done}/{len(runs)} done; {names}", refresh=False)
                move(progress, shares / len(runs))
        finally:
            progress.close()
            stop(running)
    return failures


class Child:
    """A run as a process: ``dnirnn train``, one thread if need be, in the run's folder."""

    def __init__(self, task: str, run: Run):
        self.run = run
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "dnirnn.tasks.cli", "train", task]
        threads = str(run.options.threads)
        self.process = subprocess.Popen(
            [*command, "--out", str(run.folder), *to_arguments(run.options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,  # a terminal's Ctrl-C reaches it once: from here
        )

    def ended(self) -> bool:
        return self.process.poll() is not None

    def failure(self) -> list[str]:
        """The last line of what the process complained of, if it failed."""
        if self.process.returncode == 0:
            return []
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {self.process.returncode}"
        return [f"{self.run.name}: {reason.removeprefix('dnirnn: ')}"]

    def share(self) -> float:
        """How much of its budget the run has used, by the last row of its log."""
        try:
            with open(self.run.folder / "log.jsonl", "rb") as log:
                log.seek(-min(2048, log.seek(0, os.SEEK_END)), os.SEEK_CUR)
                rows = log.read().split(b"\n")
            return fraction(self.run.options, json.loads(rows[-2]))
        except (OSError, ValueError, IndexError):
            return 0.0


def stop(children: Sequence[Child]) -> None:
    """Asks the processes to save and end, and ends those that don't."""
    for child in children:
        child.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        for child in children:
            child.process.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for child in children:
            child.process.kill()


@contextmanager
def terminated_like_interrupted():
    """SIGTERM ends the comparison as Ctrl-C does: no process is left behind."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread, where signals don't arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report(task: str, runs: Sequence[Run], folder: Path, notice: str) -> None:
    """Writes results.csv, log.jsonl and curves.png, and prints the table and their paths."""
    figures, unit = TASKS[task].FIGURES, TASKS[task].UNIT
    done = [(run, result) for run in runs if (result := run.result()) is not None]
    if not done:
        return
    paths = [folder / name for name in ("results.csv", "log.jsonl", "curves.png")]
    write_csv(paths[0], done, figures)
    write_log(paths[1], [run for run, _ in done])
    networks = {described(run.options) for run in runs}
    several = len(networks) > 1
    title = f"{len(networks)} cores" if several else described(runs[0].options)
    curve = next((f for f in figures if not f.key.startswith("test_")), figures[0])
    plots.learning_curves(
        [curve_of(run, curve.key, several) for run, _ in done],
        paths[2],
        curve.label,
        unit,
        f"{title} on {notice.split(' (')[0]}",
        curve.lower_is_better,
    )
    print(table(done, figures, unit))
    print(notice)
    for path in paths:
        print(path)


def curve_of(run: Run, key: str, named: bool) -> plots.Curve:
    points = [
        plots.Point(row["symbols"], row["seconds"], row[key])
        for row in read_log(run.folder / "log.jsonl", "valid")
    ]
    core = run.options.core if named else ""
    return plots.Curve(run.options.truncation, run.options.estimator, points, core)


def write_csv(path: Path, done: Sequence[tuple[Run, dict]], figures: Sequence[Figure]) -> None:
    def row(run: Run, result: dict) -> dict:
        found = figures_of(result)
        return {
            "run": run.name,
            **{name: getattr(run.options, name) for name in ARM},
            **{figure.key: found.get(figure.key) for figure in figures},
            "best_update": (result["best"] or {}).get("update"),
            **{name: result[name] for name in SPENT},
        }

    rows = [row(run, result) for run, result in done]

    def write(partial: IO[str]) -> None:
        writer = csv.DictWriter(partial, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    write_whole(path, write)


ARM = ("core", "truncation", "estimator", "seed", "lr")
SPENT = ("update", "symbols", "epochs", "seconds", "stopped")


def write_log(path: Path, runs: Sequence[Run]) -> None:
    def write(partial: IO[str]) -> None:
        for run in runs:
            arm = {"run": run.name, **{name: getattr(run.options, name) for name in ARM}}
            for row in read_log(run.folder / "log.jsonl"):
                partial.write(json.dumps({**arm, **row}) + "\n")

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[IO[str]], None]) -> None:
    """Writes a text file beside and renames it: what is there is whole."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        write(file)
    partial.replace(path)


def table(done: Sequence[tuple[Run, dict]], figures: Sequence[Figure], unit: str) -> str:
    """A line an arm: its figures, mean and standard deviation over the seeds, and its speed."""
    arms: dict[tuple, list[dict]] = {}
    for run, result in done:
        options = run.options
        key = (options.core, options.truncation, options.estimator, options.lr)
        arms.setdefault(key, []).append(result)
    header = ["core", "steps", "estimator", "rate", "seeds", *(figure.label for figure in figures)]
    header += [f"{unit} seen", "seconds", f"{unit}/s"]
    lines = [header]
    for (core, truncation, estimator, rate), results in sorted(arms.items()):
        found = [figures_of(result) for result in results]
        symbols = fmean(result["symbols"] for result in results)
        seconds = fmean(result["seconds"] for result in results)
        lines.append(
            [
                core,
                str(truncation),
                estimator,
                f"{rate:g}",
                str(len(results)),
                *(spread([one.get(shown.key) for one in found], shown.form) for shown in figures),
                f"{symbols:,.0f}",
                f"{seconds:,.0f}",
                f"{symbols / seconds:,.0f}" if seconds else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines]
    rows.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(rows)


def spread(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = form.format(fmean(known))
    return mean if len(known) == 1 else f"{mean} ± {form.format(stdev(known))}"
