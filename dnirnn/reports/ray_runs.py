"""Runs as tasks of a Ray cluster: the same processes, wherever Ray has a place for them."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dnirnn
from dnirnn.config.saved import write_values
from dnirnn.reports import runs
from dnirnn.reports.runs import CHILD, STOP_SECONDS, Child, Failure, Run, command_of


class Cluster:
    """A Ray cluster. address: as of ray.init; None: one of this machine's cores, for this program alone.

    Raises ValueError where Ray is not installed or the cluster can't be reached.
    """

    def __init__(self, address: str | None, cores: int):
        try:
            import ray
        except ImportError:
            raise ValueError("--on ray needs the package ray: pip install 'dnirnn[ray]'") from None
        own = {"num_cpus": cores} if address is None else {}
        self.ray = ray
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
                **own,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"--on ray:{address} can't be reached: {error}") from None
        self.cores = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def start(self, task: str, run: Run) -> "RayChild":
        return RayChild(self.ray, task, run)


class RayChild(Child):
    """A run as a Ray task, which has a process of its own there; see runs.Child."""

    def __init__(self, ray, task: str, run: Run):
        self.ray, self.run = ray, run
        # The folder is to be one that every machine of the cluster sees.
        words = ["train", task, "--out", str(run.folder.resolve())]
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            write_values(Path(file.name), task, run.options)
            config = file.read()
        package = str(Path(dnirnn.__file__).resolve().parents[1])
        threads = run.options.threads or 1
        on_gpu = getattr(run.options, "device", "cpu").startswith("cuda")
        # Ray puts GPUs out of the sight of tasks that ask for none.
        remote = ray.remote(num_cpus=threads, num_gpus=int(on_gpu), max_retries=0)(task_of())
        command = command_of(run, CHILD, package, words)
        # Every machine has a Python of its own.
        command = [None if word == sys.executable else word for word in command]
        self.task = remote.remote(command, config, str(threads), STOP_SECONDS)

    def ended(self) -> bool:
        return self.wait(0)

    def failure(self) -> list[Failure]:
        try:
            code, text = self.ray.get(self.task)
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            return [Failure(self.run.name, lines[-1] if lines else type(error).__name__)]
        if code == 0 and self.run.result() is None:
            here = f"{self.run.folder} is not a folder that all machines of the cluster share"
            return [Failure(self.run.name, f"it left no result here: {here}")]
        return self.failed(code, text)

    def interrupt(self) -> None:
        self.ray.cancel(self.task)

    def wait(self, seconds: float) -> bool:
        return bool(self.ray.wait([self.task], timeout=seconds)[0])

    def kill(self) -> None:
        with suppress(self.ray.exceptions.RayError):
            self.ray.cancel(self.task, force=True)


def task_of():
    """The task, made here so that Ray sends it by value: dnirnn need not be on its workers' path."""

    def train(command: list[str | None], config: bytes, threads: str, patience: float):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(config)
            file.flush()
            command = [sys.executable if word is None else word for word in command]
            return ended([*command, "--config", file.name], threads, patience)

    def ended(command: list[str], threads: str, patience: float):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            start_new_session=True,
        )
        try:
            _, text = process.communicate()
        except BaseException:  # cancelled
            process.send_signal(signal.SIGINT)
            try:
                process.wait(patience)
            finally:
                process.kill()
            raise
        return process.returncode, text.decode(errors="replace")

    return train


@contextmanager
def on(place: str | None, cores: int) -> Iterator[int]:
    """Runs start there: "ray", "ray:ADDRESS", or None, here. Gives the cores that there are.

    Raises ValueError for another place.
    """
    if place is None:
        yield cores
        return
    kind, _, address = place.partition(":")
    if kind != "ray":
        raise ValueError(f"--on must be ray or ray:ADDRESS; got {place!r}")
    cluster = Cluster(address or None, cores)
    runs.start, before = cluster.start, runs.start
    try:
        yield cluster.cores
    finally:
        runs.start = before
        cluster.ray.shutdown()
