"""train: one run, from its options to its figures."""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dnirnn.codistillation import worker_of_environment
from dnirnn.commands import horizon
from dnirnn.commands.fidelity import measurement
from dnirnn.commands.shared import OK, task_parsers
from dnirnn.config.arguments import add_options, given, given_last
from dnirnn.config.network import UPDATES, annealing, counting
from dnirnn.config.recipes import read, recipes
from dnirnn.config.registry import TASKS
from dnirnn.config.saved import changeable, described, read_values
from dnirnn.config.task import BOUND, Task, figures_of, trainer_config
from dnirnn.device import find_device, usable_cores
from dnirnn.distributed import PartRanks, Ranks, TorchRanks, joined
from dnirnn.groups import OptionGroup, kinds_of
from dnirnn.options import Config, flag
from dnirnn.progress import RunProgress
from dnirnn.training.trainer import AnotherRun, Trainer


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    name, task = task_parsers(parent, words)
    if task is None:
        return
    kind = TASKS[name].Options
    add_out(task, kind)
    start = task.add_mutually_exclusive_group()
    add_config(start)
    if recipes(name):
        start.add_argument(
            "--recipe",
            choices=tuple(recipes(name)),
            help="the options for the best model in so many minutes on such a machine; others that are"
            " given go over them; it says first what to expect, and where the file is",
        )
    config, recipe = given_last(words, "config"), given_last(words, "recipe")
    values = file_values(name, config)
    if recipe in recipes(name):
        values = read(name, recipe)[0]
    add_options(task, kind, [chosen_by(kind, words, values)])


def add_out(parent: argparse.ArgumentParser, options: type) -> None:
    """Where a run goes, and what becomes of one that is there."""
    parent.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder: configuration, log, checkpoints, result; a run found there with the"
        " same options is resumed (default: runs/ and a name made of the main options)",
    )
    go_on = parent.add_mutually_exclusive_group()
    go_on.add_argument(
        "--restart",
        action="store_true",
        help="begin anew in the run folder; the run that is there is moved aside and kept",
    )
    go_on.add_argument(
        "--resume-with",
        action="store_true",
        help="go on with the run that is there and the options given here where they differ, of"
        f" {', '.join(map(flag, changeable(options)))}",
    )


def chosen_by(
    kind: type[OptionGroup], words: Sequence[str], values: Mapping[str, Any]
) -> dict[str, type[Config]]:
    """What these arguments choose over these values, seen before they are parsed."""
    words_of = {name: given_last(words, name) for name in kind().choices()}
    return kinds_of(kind, {**values, **{name: word for name, word in words_of.items() if word}})


def add_config(parser: Any) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options from a file, a run's config.json or a copy that you changed; flags go over it",
    )


def file_values(task: str, path: str | Path | None) -> dict[str, Any]:
    """The options that --config gives; none without it."""
    if path is None:
        return {}
    module = TASKS[task]
    return read_values(Path(path), task, module.Options, getattr(module, "FOUND", ()))


def run(arguments: argparse.Namespace) -> int:
    kind = TASKS[arguments.task].Options
    values, flags = file_values(arguments.task, arguments.config), given(arguments)
    if getattr(arguments, "recipe", None):
        values, lines = read(arguments.task, arguments.recipe)
        print("\n".join(lines), flush=True)
    # What a file sets of one core does not go with another one that the line chooses.
    options = kind(**values).but(**flags) if values else kind(**flags)
    return start(arguments.task, options, arguments)


def start(task: str, options: Any, arguments: argparse.Namespace) -> int:
    """Trains, or resumes, the run of these options."""
    folder = arguments.out or default_folder(task, options)
    try:
        train(task, options, folder, arguments.restart, arguments.resume_with)
    except AnotherRun as error:
        known = changeable(type(options))
        if all(key in known for key in error.differing):
            raise ValueError(f"{error}, --resume-with to go on so, or --restart") from None
        raise ValueError(f"{error}, or --restart to begin anew in this one") from None
    return OK


def default_folder(name: str, options: Any) -> Path:
    """runs/ and the options that most often distinguish two runs."""
    if hasattr(TASKS[name], "folder_name"):
        return Path("runs") / TASKS[name].folder_name(options)
    subject = TASKS[name].subject(options)
    core = options.core
    layers = getattr(core, "layers", None)
    deeper = "" if layers == getattr(type(core), "layers", None) else f"x{layers}"
    size = f"-{options.parameters}" if options.parameters else core.hidden
    network = f"{file_name(core.name)}{size}{deeper}"
    words = (name, subject, network, f"T{options.truncation}", file_name(options.estimator.name))
    return Path("runs") / "-".join((*words, f"seed{options.seed}"))


def file_name(text: str) -> str:
    """Without the characters of it that a file's name had better not have."""
    return re.sub(r"[^\w.+-]", ".", text)


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
    kind = PartRanks if str(getattr(options, "parallel", "data")) == "decoupled" else TorchRanks
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
        horizon=horizon.measurement(task, options),
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
    between = sum(p.numel() for one in getattr(model, "cuts", ()) for p in one.parameters())
    line += f", of which {between:,} in the predictors between parts" if between else ""
    back = f"{options.truncation} steps"
    if planned := getattr(options, "truncation_plan", ()):
        back = ", then ".join(map(str, (options.truncation, *planned))) + " steps"
    if options.truncation == "auto":
        bound = options.truncation_bound or BOUND
        back = f"as far as a bias of {bound:g} asks, {options.longest_truncation} steps at most"
    return f"{line}; gradients carried back {back}"


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
