"""train, eval and sample: one run, from its options to its figures."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dnirnn.tasks import char_lm, copy
from dnirnn.tasks.progress import RunProgress
from dnirnn.tasks.task import Figure, Task, trainer_config
from dnirnn.trainer import Trainer, load_weights, read_config

TASKS: dict[str, ModuleType] = {"char-lm": char_lm, "copy": copy}


def default_folder(name: str, options: Any) -> Path:
    """runs/ and the options that most often tell two runs apart."""
    subject = Path(options.corpus).stem if name == "char-lm" else f"{options.bits}bit"
    layers = f"x{options.layers}" if options.layers > 1 else ""
    network = f"{options.core}{options.hidden}{layers}"
    words = (name, subject, network, f"T{options.truncation}", options.estimator)
    return Path("runs") / "-".join((*words, f"seed{options.seed}"))


def train(name: str, options: Any, folder: Path) -> None:
    """Trains, or resumes, the run in ``folder``, and prints its figures."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    task = TASKS[name].build(options)
    trainer = Trainer(
        task.model,
        task.stream,
        trainer_config(options, task.symbols_per_update),
        folder,
        task.evaluate,
        task.config,
        task.test,
    )
    if not options.quiet:
        print(task.notice)
        print(network_line(task, options))
        print(f"run folder: {folder}", flush=True)
    progress = RunProgress(options)
    try:
        result = trainer.run(progress)
    finally:
        progress.close()
    print(summary(result, TASKS[name].FIGURES))
    print(task.notice)


def network_line(task: Task, options: Any) -> str:
    model = task.model
    core = sum(parameter.numel() for parameter in model.core_parameters())
    line = f"network: {options.layers} x {options.hidden} {options.core}, {core:,} parameters"
    estimator = sum(parameter.numel() for parameter in model.estimator_parameters())
    line += f" and {estimator:,} in the estimator" if estimator else ""
    return f"{line}; gradients carried back {options.truncation} steps"


def summary(result: dict, figures: tuple[Figure, ...]) -> str:
    """A run's result in two lines."""
    lines = [
        f"stopped by {result['stopped']} after {result['update']:,} updates,"
        f" {result['symbols']:,} symbols ({result['epochs']:.2f} epochs),"
        f" {result['seconds']:,.0f} s of training"
    ]
    found = figures_of(result)
    parts = [
        f"{figure.label}: {figure.form.format(found[figure.key])}"
        for figure in figures
        if figure.key in found
    ]
    if parts:
        lines.append("; ".join(parts) + f" (best model, update {result['best']['update']:,})")
    return "\n".join(lines)


def figures_of(result: dict) -> dict[str, float]:
    """The metrics of the best model: those of validation, and those of test over them."""
    return {**(result.get("best") or {}), **(result.get("test") or {})}


def evaluate(run: Path, split: str, weights: str, text: dict[str, str | None]) -> None:
    """Prints the figures of a run's model on a split.

    text: where the text is now, where that is not what the run's configuration says.
    """
    config = read_config(run)
    name = task_of(config, run)
    given = {option: value for option, value in text.items() if value is not None}
    if given and name != "char-lm":
        raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with char-lm runs only")
    if given:
        options = dataclasses.replace(char_lm.options_of(config), **given)
        config = {**config, **{option: getattr(options, option) for option in text}}
    model, _ = TASKS[name].restore(config)
    known = load_weights(run, model, weights)
    figures, notice = TASKS[name].evaluate(config, model, split)
    parts = "; ".join(f"{LABELS.get(key, key)}: {value:.4f}" for key, value in figures.items())
    print(f"{parts} ({weights} model, update {known['update']:,})")
    print(notice)


LABELS = {"bits": "bits per character", "solved": "longest length solved"}


def sample(
    run: Path, weights: str, length: int, temperature: float, prime: str, seed: int
) -> None:
    """Prints a text that a run's model writes."""
    config = read_config(run)
    if task_of(config, run) != "char-lm":
        raise ValueError(f"sample needs a char-lm run; {run} is one of {config['task']}")
    model, vocabulary = char_lm.restore(config)
    load_weights(run, model, weights)
    print(prime + char_lm.sample(model, vocabulary, length, temperature, prime, seed))


def task_of(config: dict, run: Path) -> str:
    if config.get("task") not in TASKS:
        raise ValueError(f"{run} is not a run of {' or '.join(TASKS)}")
    return config["task"]
