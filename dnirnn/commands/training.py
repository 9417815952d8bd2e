"""train, eval and sample: one run, from its options to its figures."""

import dataclasses
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dnirnn.codistillation import worker_of_environment
from dnirnn.commands import horizon
from dnirnn.commands.fidelity import measurement, report
from dnirnn.config.cores import UPDATES, annealing, counting, described
from dnirnn.config.options import changeable, flag, from_config
from dnirnn.config.registry import TASKS
from dnirnn.config.task import Task, figures_of, trainer_config
from dnirnn.device import find_device, usable_cores
from dnirnn.distributed import PartRanks, Ranks, TorchRanks, joined
from dnirnn.progress import RunProgress
from dnirnn.training.trainer import Trainer, load_weights, read_config, reading_config


def default_folder(name: str, options: Any) -> Path:
    """runs/ and the options that most often tell two runs apart."""
    if hasattr(TASKS[name], "folder_name"):
        return Path("runs") / TASKS[name].folder_name(options)
    subject = TASKS[name].subject(options)
    layers = f"x{options.layers}" if (options.layers or 1) > 1 else ""
    size = f"-{options.parameters}" if options.parameters else options.hidden
    network = f"{options.core}{size}{layers}"
    words = (name, subject, network, f"T{options.truncation}", options.estimator)
    return Path("runs") / "-".join((*words, f"seed{options.seed}"))


def train(
    name: str, options: Any, folder: Path, restart: bool = False, change: bool = False
) -> None:
    """Trains, or resumes, the run in ``folder``, and prints its figures.

    Started by torchrun it is one of the processes that train one model together.

    restart: begins anew, and moves a run that is there aside.
    change: goes on with the options given where they differ from those of the run, if they may.
    """
    if getattr(options, "codistill", False):  # each a run of its own
        options, folder = as_worker(options, folder)
        train_together(name, options, folder, restart, change, Ranks())
        return
    kind = PartRanks if getattr(options, "parallel", "data") == "decoupled" else TorchRanks
    with joined(options.device, kind) as ranks:
        train_together(name, options, folder, restart, change, ranks)


def train_together(
    name: str, options: Any, folder: Path, restart: bool, change: bool, ranks: Ranks
) -> None:
    shown = ranks.first and not options.quiet
    device = find_device(options.device)
    torch.set_num_threads(options.threads or min(torch.get_num_threads(), usable_cores()))
    task = TASKS[name].build(options)
    trainer = Trainer(
        task.model,
        task.stream,
        trainer_config(options, task.symbols_per_update, TASKS[name].DECAY),
        folder,
        counting(task.evaluate),
        task.config,
        task.test,
        annealing(options),
        getattr(TASKS[name], "measurement", measurement)(task, options),
        device=device,
        graphs=not options.no_graphs,
        may_change=changeable(type(options)) if change else (),
        restart=restart,
        ranks=ranks,
    )
    if hasattr(TASKS[name], "attach"):
        TASKS[name].attach(trainer, options)
    if shown:
        print(task.notice)
        if ranks.size > 1 and ranks.lockstep:
            print(f"{ranks.size} processes, {trainer.stream.batch_size} rows of the batch each")
        print(getattr(TASKS[name], "network_line", network_line)(task, options))
        print(f"run folder: {folder}", flush=True)
    progress = RunProgress(options)
    try:
        result = trainer.run(progress)
    finally:
        progress.close()
    if not ranks.lockstep:
        trainer.updater.close()
    if ranks.first:
        print(summary(result, TASKS[name]))
        print(task.notice)


def as_worker(options: Any, folder: Path) -> tuple[Any, Path]:
    """The options of this one of several workers, and its own run folder in ``folder``."""
    if options.worker is None:
        worker, workers = worker_of_environment()
        quiet = options.quiet or worker > 0
        options = dataclasses.replace(options, worker=worker, workers=workers, quiet=quiet)
    return options, folder / f"worker-{options.worker}"


def network_line(task: Task, options: Any) -> str:
    model = task.model
    core = sum(parameter.numel() for parameter in model.core_parameters())
    line = f"network: {described(options)}; {model.truncated.core.output_size} units out,"
    line += f" {core:,} parameters"
    estimator = sum(parameter.numel() for parameter in model.estimator_parameters())
    line += f" and {estimator:,} in the estimator" if estimator else ""
    return f"{line}; gradients carried back {options.truncation} steps"


def summary(result: dict, task: ModuleType) -> str:
    """A run's result in two lines."""
    lines = [
        f"stopped by {result['stopped']} after {result['update']:,} updates,"
        f" {result['symbols']:,} {task.UNIT} ({result['epochs']:,.2f} {task.EPOCHS}),"
        f" {result['seconds']:,.0f} s of training"
    ]
    found = figures_of(result)
    parts = [
        f"{figure.label}: {figure.form.format(found[figure.key])}"
        for figure in (*task.FIGURES, UPDATES)
        if figure.key in found
    ]
    if parts:
        lines.append("; ".join(parts) + f" (best model, update {result['best']['update']:,})")
    return "\n".join(lines)


def evaluate(
    run: Path, split: str | None, weights: str, data: dict[str, Any], device: str = "cpu"
) -> None:
    """Prints the figures of a run's model, of a task with data on a split of it, test if None.

    data: where the text or the images are now, where that is not what the run's configuration says;
        how a dynamic evaluation is made, if there is to be one.
    """
    place, config = find_device(device), read_config(run)
    task = TASKS[task_of(config, run)]
    with reading_config(run):
        model = task.restore(config)[0].to(place)
    known = load_weights(run, model, weights)
    given = {name: value for name, value in {"split": split, **data}.items() if value is not None}
    for name in given.keys() - task.DATA:
        tasks = " and ".join(other for other in TASKS if name in TASKS[other].DATA)
        raise ValueError(f"{flag(name)} goes with {tasks} runs only")
    if "split" in task.DATA:
        split = given.pop("split", "test")
        lines = task.evaluate({**config, **given}, model, split)
    else:
        lines = task.evaluate(config, model)
    print(f"{weights} model, update {known['update']:,} of {run}")
    print("\n".join(lines))


def sample(
    run: Path,
    weights: str,
    length: int,
    temperature: float,
    prime: str,
    seed: int,
    device: str = "cpu",
) -> None:
    """Prints a text that a run's model writes; how fast, on stderr."""
    place, config = find_device(device), read_config(run)
    task = TASKS[task_of(config, run)]
    if not hasattr(task, "sample"):
        raise ValueError(f"sample needs a char-lm run; {run} is one of {config['task']}")
    with reading_config(run):
        model, vocabulary = task.restore(config)
    load_weights(run, model.to(place), weights)
    began = time.perf_counter()
    text = task.sample(model, vocabulary, length, temperature, prime, seed)
    seconds = time.perf_counter() - began
    print(prime + text)
    rate = f"{length / seconds:,.0f} {task.UNIT} a second"
    print(f"{length:,} {task.UNIT} in {seconds:.2f} s, {rate}", file=sys.stderr)


def report_fidelity(run: Path, weights: str, steps: int, device: str = "cpu") -> None:
    """Prints, and plots, how near what a run's estimator says is to the true gradient."""
    report(run, weights, built(run, device), steps)


def report_horizon(run: Path, weights: str, steps: int, device: str = "cpu") -> None:
    """Prints, and plots, how many coming steps a cut's gradient comes from in a run's network."""
    horizon.report(run, weights, built(run, device), steps)


def built(run: Path, device: str) -> Task:
    """A run's task, its model on the device, with fresh weights."""
    place, config = find_device(device), read_config(run)
    module = TASKS[task_of(config, run)]
    with reading_config(run):
        options = from_config(module.Options, config)
        module.restore(config)  # what it names can be made: of what is wrong, this is the place
    task = module.build(options)
    task.model.to(place)
    return task


def task_of(config: dict, run: Path) -> str:
    if config.get("task") not in list(TASKS):
        raise ValueError(f"{run} is not a run of {' or '.join(TASKS)}")
    return config["task"]
