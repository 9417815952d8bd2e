"""sample: a text that a trained char-lm writes."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dnirnn.commands.shared import OK, add_run_folder, task_of
from dnirnn.config.registry import TASKS
from dnirnn.device import find_device
from dnirnn.training.trainer import load_weights, read_config, reading_config


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="divides the logits: 0 always takes the likeliest character, 1 draws as the model"
        " learned, more gives more variety (default: 1.0)",
    )
    parent.add_argument(
        "--length", type=int, default=500, metavar="CHARACTERS", help="how much (default: 500)"
    )
    parent.add_argument(
        "--prime", default="", metavar="TEXT", help="what it goes on from (default: a new line)"
    )
    parent.add_argument(
        "--seed", type=int, default=0, metavar="SEED", help="seed of the draws (default: 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    sample(
        arguments.run,
        arguments.weights,
        arguments.length,
        arguments.temperature,
        arguments.prime,
        arguments.seed,
        arguments.device,
    )
    return OK


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
