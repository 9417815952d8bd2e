"""Runs as processes of their own: what each is, doing several at once, what one left behind."""

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
from pathlib import Path
from typing import IO, Any, NamedTuple

import dnirnn
from dnirnn.config.registry import TASKS
from dnirnn.config.saved import identity, write_values
from dnirnn.config.task import Figure, figures_of
from dnirnn.progress import bar, fraction, minutes, move
from dnirnn.training.log import read_log
from dnirnn.training.trainer import LOG, RESULT, Interrupted, check_config, read_json

# ``-m`` would put the working folder, with whatever copy.py is there, before Python's own modules.
CHILD = (
    "import runpy, sys; sys.path[:] = [*filter(None, sys.path), sys.argv.pop(1)];"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
POLL_SECONDS = 0.2
STOP_SECONDS = 60.0  # what a run may take to finish its update and save


class Run(NamedTuple):
    """One run of a comparison; its folder is named after it.

    kept: of an earlier comparison in the same folder, done by whatever budget it had.
    processes: that train it, started by torchrun where there are several.
    """

    name: str
    options: Any
    folder: Path
    kept: bool = False
    processes: int = 1

    @property
    def place(self) -> Path:
        """The run folder that is shown: of codistilling workers, who have one each, the first one's."""
        return self.folder / "worker-0" if getattr(self.options, "codistill", False) else self.folder

    def result(self) -> dict | None:
        """The result where the run has used up its budget."""
        result = read_json(self.place / RESULT)
        if result is None:
            return None
        done = result["stopped"] == "patience" or fraction(self.options, result) >= 1
        return result if done or self.kept else None


def checked(task: str, runs: Sequence[Run]) -> str:
    """The line that says what the runs' figures are figures of.

    Raises ValueError, before anything is run, where a run's folder holds another configuration.
    """
    options = [shown_options(run) for run in runs]
    first = identity(options[0])
    ready = TASKS[task].build(options[0])
    for run, known in zip(runs, options):
        # Data is loaded once: of what the task made of the options, it is the same for all runs.
        own = identity(known)
        config = {k: v for k, v in ready.config.items() if k in own or k not in first}
        config |= {k: v for k, v in own.items() if k not in first or v != first[k]}
        check_config(run.place, json.loads(json.dumps(config)))
    return ready.notice


def shown_options(run: Run) -> Any:
    """The options of what is in run.place."""
    if not getattr(run.options, "codistill", False):
        return run.options
    return dataclasses.replace(run.options, worker=0, workers=run.processes)


class Failure(NamedTuple):
    """A run that did not come to its end. reason: the last line that it complained with."""

    run: str
    reason: str


def run_missing(
    task: str, runs: Sequence[Run], folder: Path, jobs: int, quiet: bool
) -> list[Failure]:
    """Says how many runs there are, and does those that are not done, ``jobs`` at once."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if run.result() is None]
    done, at_once = len(runs) - len(missing), min(jobs, len(missing))
    limits = [minutes(run.options) for run in missing]
    text = f"{len(runs)} runs of {task} in {folder}"
    if done:
        text += f", {done} of them done before (delete a folder to run it again)"
    if missing:
        text += f"; {at_once} at a time"
    if missing and all(limits):
        text += f", at most {sum(limits) / at_once:,.1f} minutes of training"
    print(text, flush=True)
    return run_all(task, missing, jobs, quiet) if missing else []


def shown_figure(task: str) -> Figure:
    """The figure that is measured as a run goes, for its curve and its place on the screen."""
    figures = TASKS[task].FIGURES
    return next((one for one in figures if not one.key.startswith("test_")), figures[0])


def run_all(task: str, runs: Sequence[Run], jobs: int, quiet: bool) -> list[Failure]:
    """Does the runs as processes of their own, ``jobs`` at once; those that failed.

    On Ctrl-C every process saves and ends before KeyboardInterrupt goes on.
    """
    waiting, running, failures, done = list(runs), [], [], 0
    figure = shown_figure(task)
    progress = bar(quiet, f"{task}, {figure.label} ")
    with terminated_like_interrupted():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(start(task, waiting.pop(0)))
                time.sleep(POLL_SECONDS)
                for child in [child for child in running if child.ended()]:
                    running.remove(child)
                    done += 1
                    failures += child.failure()
                shares = done + sum(child.share() for child in running)
                names = ", ".join(child.standing(figure) for child in running)
                progress.set_postfix_str(f"{done}/{len(runs)} done; {names}", refresh=False)
                move(progress, shares / len(runs))
        finally:
            progress.close()
            stop(running)
    return failures


def start(task: str, run: Run) -> "Child":
    """Begins a run: here, where nothing else was put in the place of this (see ray_runs)."""
    return Child(task, run)


def command_of(run: Run, program: str, package: str, words: Sequence[str]) -> list[str]:
    """The command that trains a run: dnirnn with these words, under torchrun if there are several of it."""
    alone = [sys.executable, "-c", program, package, "dnirnn", *words]
    if run.processes == 1:
        return alone
    together = ["--standalone", "--nproc-per-node", str(run.processes), "--no-python"]
    return [sys.executable, "-c", program, package, "torch.distributed.run", *together, *alone]


class Child:
    """A run as a process: ``dnirnn train``, one thread if need be, in the run's folder."""

    def __init__(self, task: str, run: Run):
        self.run = run
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        self.config = tempfile.NamedTemporaryFile(suffix=".json")  # there as long as the child
        write_values(Path(self.config.name), task, run.options)
        package = str(Path(dnirnn.__file__).resolve().parents[1])
        words = ["train", task, "--out", str(run.folder), "--config", self.config.name]
        threads = str(run.options.threads)
        self.process = subprocess.Popen(
            command_of(run, CHILD, package, words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,  # a terminal's Ctrl-C reaches it once: from here
        )

    def ended(self) -> bool:
        return self.process.poll() is not None

    def failure(self) -> list[Failure]:
        """The run with the last line of what it complained of, if it failed."""
        self.errors.seek(0)
        return self.failed(self.process.returncode, self.errors.read().decode(errors="replace"))

    def failed(self, code: int, text: str) -> list[Failure]:
        if code == 0:
            return []
        lines = text.strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}"
        return [Failure(self.run.name, reason.removeprefix("dnirnn: "))]

    def interrupt(self) -> None:
        """Asks it to save and end."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so long."""
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        self.process.kill()

    def rows(self) -> list[dict]:
        """The last rows of the run's log; none where there is none yet."""
        try:
            with open(self.run.place / LOG, "rb") as log:
                log.seek(-min(4096, log.seek(0, os.SEEK_END)), os.SEEK_CUR)
                first, *lines = log.read().split(b"\n")[:-1]
                # The first may lack its beginning, unless it begins the file.
                lines = [first, *lines] if first.startswith(b'{"kind"') else lines
            return [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []

    def standing(self, figure: Figure) -> str:
        """The run's name and how it did in its last evaluation."""
        found = [row[figure.key] for row in self.rows() if figure.key in row]
        return f"{self.run.name}: {figure.form.format(found[-1])}" if found else self.run.name

    def share(self) -> float:
        """How much of its budget the run has used, by the last row of its log."""
        rows = self.rows()
        return fraction(self.run.options, rows[-1]) if rows else 0.0


def stop(children: Sequence[Child]) -> None:
    """Asks the processes to save and end, and ends those that don't."""
    for child in children:
        child.interrupt()
    deadline = time.monotonic() + STOP_SECONDS
    try:
        ended = [child.wait(max(0.0, deadline - time.monotonic())) for child in children]
        late = [child for child, done in zip(children, ended) if not done]
    except (KeyboardInterrupt, Interrupted):
        late = children
    for child in late:
        child.kill()


@contextmanager
def terminated_like_interrupted():
    """SIGTERM ends the comparison as Ctrl-C does: no process is left behind."""

    def leave(number, frame):
        raise Interrupted("", number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread, where signals don't arrive
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


SPENT = ("update", "symbols", "epochs", "seconds", "stopped")


def write_csv(path: Path, arms: Sequence[tuple[Run, dict]], figures: Sequence[Figure]) -> None:
    """A row a run that is done: its name, what makes its arm, its figures, what it spent."""

    def row(run: Run, arm: dict) -> dict:
        result = run.result()
        found = figures_of(result)
        return {
            "run": run.name,
            **arm,
            **{figure.key: found.get(figure.key) for figure in figures},
            "best_update": (result["best"] or {}).get("update"),
            **{name: result[name] for name in SPENT},
        }

    write_rows(path, [row(run, arm) for run, arm in arms])


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Writes a CSV with a line a row, and one before them of the first row's names."""

    def write(partial: IO[str]) -> None:
        writer = csv.DictWriter(partial, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)

    write_whole(path, write)


def write_log(path: Path, arms: Sequence[tuple[Run, dict]]) -> None:
    """The runs' logs in one, each row with its run's name and arm."""

    def write(partial: IO[str]) -> None:
        for run, arm in arms:
            for row in read_log(run.place / LOG):
                partial.write(json.dumps({"run": run.name, **arm, **row}) + "\n")

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[IO[str]], None]) -> None:
    """Writes a text file beside and renames it: what is there is whole."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        write(file)
    partial.replace(path)
