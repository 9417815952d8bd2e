"""horizon: how many coming steps a cut's gradient comes from in a run's network."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from dnirnn.commands.shared import OK, add_run_folder, at_least_one, built
from dnirnn.config.network import device_of
from dnirnn.config.task import Task
from dnirnn.horizon import Bias, Horizon, horizon, truncation_bias
from dnirnn.training import checkpoint
from dnirnn.training.trainer import CHECKPOINTS, load_weights

STEPS = 128  # at whose states it is measured, of every sequence that does not end before
HEAD = (
    "steps", "cosine_low", "cosine", "cosine_high", "norm_ratio_low", "norm_ratio",
    "norm_ratio_high", "bias", "bias_to_noise",
)  # fmt: skip


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--lookahead",
        type=at_least_one,
        default=40,
        metavar="STEPS",
        help="the coming steps that a cut's gradient is taken to be of, all in all (default: 40)",
    )


def run(arguments: argparse.Namespace) -> int:
    task = built(arguments.run, arguments.device)
    report(arguments.run, arguments.weights, task, arguments.lookahead)
    return OK


def report(run: Path, weights: str, task: Task, lookahead: int) -> None:
    """Prints what dnirnn.horizon measures of a run's model; writes horizon.csv and horizon.png.

    Raises ValueError for a task that has no held-out sequences to measure it on.
    """
    if task.stretch is None:
        raise ValueError(f"{run}: its task has no held-out sequences to measure it on")
    known = load_weights(run, task.model, weights)
    saved = checkpoint.checkpoints(run / CHECKPOINTS)[-1]
    # A curriculum is where training left it.
    task.stream.load_state_dict(checkpoint.unflatten(*checkpoint.load(saved))["stream"])
    task.model.eval()
    batch = task.stretch(STEPS + lookahead - 1).to(device_of(task.model))
    found = horizon(task.model, batch, lookahead)
    biases = truncation_bias(task.model, batch, [reach.steps for reach in found.reaches])
    print(f"{weights} model, update {known['update']:,} of {run}; {found.positions:,} positions")
    median, most, largest = found.norms
    print(f"norm of a state's gradient: median {median:.3g}, 99 % {most:.3g}, largest {largest:.3g}")
    for line in lines(found, biases, task.model.truncated.truncation):
        print(line)
    rows = [
        (reach.steps, *reach.cosine, *reach.norm_ratio, bias.bias, bias.bias_to_noise)
        for reach, bias in zip(found.reaches, biases)
    ]
    with (run / "horizon.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])
    draw(found, biases, run / "horizon.png")
    print(run / "horizon.csv")
    print(run / "horizon.png")


def lines(found: Horizon, biases: list[Bias], truncation: int) -> list[str]:
    """The table; the quartiles over positions stand beside the means."""
    wide = found.reaches[-1].steps
    table = [
        f"the next | cosine with the gradient of the next {wide} | share of its norm"
        " | a window of so many steps: bias | bias / noise"
    ]
    for reach, bias in zip(found.reaches, biases):
        cosine, norm = (
            f"{mean:.2f} ({low:.2f} to {high:.2f})"
            for low, mean, high in (reach.cosine, reach.norm_ratio)
        )
        own = " <- this run's" if reach.steps == truncation else ""
        table.append(
            f"{reach.steps:8} | {cosine} | {norm} | {bias.bias:.3f} | {bias.bias_to_noise:.2f}{own}"
        )
    return table


def draw(found: Horizon, biases: list[Bias], path: Path) -> None:
    """A PNG: the two measures of the reach with their quartiles, and the bias, against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [reach.steps for reach in found.reaches]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for axis, name in zip(axes, ("cosine", "norm_ratio")):
        low, mean, high = zip(*(getattr(reach, name) for reach in found.reaches))
        axis.fill_between(steps, low, high, alpha=0.25)
        axis.plot(steps, mean, "o-")
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("coming steps")
    axes[2].plot(steps, [bias.bias for bias in biases], "o-", label="of the gradient")
    axes[2].plot(steps, [bias.bias_to_noise for bias in biases], "s--", label="of its noise")
    axes[2].set_title("bias")
    axes[2].set_xlabel("truncation")
    axes[2].legend()
    for axis in axes:
        axis.set_xscale("log", base=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
