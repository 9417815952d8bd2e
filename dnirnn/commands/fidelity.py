"""fidelity: how near what a run's estimator predicts is to the true gradient."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dnirnn.commands.shared import OK, add_run_folder, at_least_one, built
from dnirnn.config.network import device_of
from dnirnn.config.task import Task
from dnirnn.fidelity import fidelity
from dnirnn.model import SequenceModel
from dnirnn.training import checkpoint
from dnirnn.training.log import read_log
from dnirnn.training.trainer import CHECKPOINTS, LOG, load_weights, read_config

BOUNDARIES = 16  # that are measured, of every sequence that does not end before
FIGURES = ("cosine", "norm_ratio", "relative_error")


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--lookahead",
        type=at_least_one,
        default=40,
        metavar="STEPS",
        help="how far the true gradient looks ahead, rounded up to whole chunks (default: 40)",
    )


def run(arguments: argparse.Namespace) -> int:
    task = built(arguments.run, arguments.device)
    report(arguments.run, arguments.weights, task, arguments.lookahead)
    return OK


def measurement(task: Task, options: Any) -> Callable[[SequenceModel], dict] | None:
    """What a trainer measures every so often; None where the options ask for nothing.

    Raises ValueError for a task that can't be measured, or a lookahead without measurements.
    """
    if options.fidelity_every is None:
        if options.fidelity_lookahead != type(options).fidelity_lookahead:
            raise ValueError("--fidelity-lookahead goes with --fidelity-every only")
        return None
    if task.stretch is None:
        raise ValueError("--fidelity-every: this task has no held-out sequences to measure it on")
    return lambda model: measure(model, task, options.fidelity_lookahead)


def measure(model: SequenceModel, task: Task, steps: int) -> dict[str, float | None]:
    """The figures of dnirnn.fidelity on the task's held-out sequences, looking ``steps`` ahead."""
    truncation = model.truncated.truncation
    chunks = -(-steps // truncation)
    batch = task.stretch(truncation * (BOUNDARIES + chunks)).to(device_of(model))
    return fidelity(model, [batch], chunks)


def report(run: Path, weights: str, task: Task, steps: int) -> None:
    """Prints the figures of a run's model; draws those of its log, where it has any.

    Raises ValueError for a run without a learned estimator, or a task that can't be measured.
    """
    if not task.model.estimator_parameters():
        name = read_config(run)["estimator"]
        raise ValueError(f"{run} has no estimator to measure: it was trained with --estimator {name}")
    if task.stretch is None:
        raise ValueError(f"{run}: its task has no held-out sequences to measure an estimator on")
    known = load_weights(run, task.model, weights)
    saved = checkpoint.checkpoints(run / CHECKPOINTS)[-1]
    # A curriculum is where training left it.
    tree = checkpoint.unflatten(*checkpoint.load(saved))
    task.stream.load_state_dict(tree["stream"])
    if tree.get("truncation"):  # where a plan left it
        task.model.truncated.truncation = tree["truncation"]["truncation"]
    task.model.eval()
    found = measure(task.model, task, steps)
    print(f"{weights} model, update {known['update']:,} of {run}; {found['boundaries']} boundaries")
    own = task.model.truncated.estimator.discount
    for suffix, discount in (("", own), ("_1", 1.0)):
        figures = ", ".join(
            f"{name.replace('_', ' ')} {shown_as(found[name + suffix])}" for name in FIGURES
        )
        print(f"against the true gradient of {steps} steps at discount {discount:g}: {figures}")
    rows = read_log(run / LOG, "fidelity")
    if rows:
        draw(rows, run / "fidelity.png", own)
        print(run / "fidelity.png")


def shown_as(figure: float | None) -> str:
    return "none" if figure is None else f"{figure:.3f}"


def draw(rows: list[dict], path: Path, discount: float) -> None:
    """A PNG: each figure against updates, at the estimator's own discount and at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(FIGURES), figsize=(11, 3.6), layout="constrained")
    for axis, name in zip(axes, FIGURES):
        for suffix, at, style in (("", discount, "-"), ("_1", 1, "--")):
            known = [row for row in rows if row[name + suffix] is not None]
            x, y = [row["update"] for row in known], [row[name + suffix] for row in known]
            axis.plot(x, y, style, label=f"discount {at:g}")
        axis.set_xlabel("updates")
        axis.set_title(name.replace("_", " "))
        axis.set_yscale("linear" if name == "cosine" else "log")
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
