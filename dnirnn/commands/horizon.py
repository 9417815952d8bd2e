"""horizon: how many coming steps a cut's gradient comes from in a run's network."""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dnirnn.commands.shared import OK, add_run_folder, at_least_one, built
from dnirnn.config.network import device_of
from dnirnn.config.task import Task
from dnirnn.horizon import Bias, Horizon, horizon, truncation_bias
from dnirnn.model import SequenceModel
from dnirnn.training import checkpoint
from dnirnn.training.log import read_log
from dnirnn.training.trainer import CHECKPOINTS, LOG, load_weights

LOOKAHEAD = 40
STEPS = 128  # at whose states it is measured, of every sequence that does not end before
HEAD = (
    "steps", "cosine_low", "cosine", "cosine_high", "norm_ratio_low", "norm_ratio",
    "norm_ratio_high", "bias", "bias_to_noise",
)  # fmt: skip
ALONG = ("cosine", "norm_ratio", "bias", "bias_to_noise")  # of a row of the log, each of some steps


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--lookahead",
        type=at_least_one,
        default=LOOKAHEAD,
        metavar="STEPS",
        help="the coming steps that a cut's gradient is taken to be of, all in all"
        f" (default: {LOOKAHEAD})",
    )


def run(arguments: argparse.Namespace) -> int:
    task = built(arguments.run, arguments.device)
    report(arguments.run, arguments.weights, task, arguments.lookahead)
    along(arguments.run)
    return OK


def measure(model: SequenceModel, task: Task, lookahead: int) -> tuple[Horizon, list[Bias]]:
    """What dnirnn.horizon measures of a model, in eval mode, on the task's held-out sequences."""
    batch = task.stretch(STEPS + lookahead - 1).to(device_of(model))
    found = horizon(model, batch, lookahead)
    return found, truncation_bias(model, batch, [reach.steps for reach in found.reaches])


def measurement(task: Task, options: Any) -> Callable[[SequenceModel], dict] | None:
    """What a trainer measures every so often; None where the options ask for nothing.

    Raises ValueError for a task that can't be measured.
    """
    if getattr(options, "horizon_every", None) is None:
        return None
    if task.stretch is None:
        raise ValueError("--horizon-every: this task has no held-out sequences to measure it on")

    def figures(model: SequenceModel) -> dict[str, float]:
        found, biases = measure(model, task, LOOKAHEAD)
        return {
            f"{name}_{reach.steps}": value
            for reach, bias in zip(found.reaches, biases)
            for name, value in zip(ALONG, (reach.cosine[1], reach.norm_ratio[1], *bias[1:]))
        }

    return figures


def report(run: Path, weights: str, task: Task, lookahead: int) -> None:
    """Prints what dnirnn.horizon measures of a run's model; writes horizon.csv and horizon.png.

    Raises ValueError for a task that has no held-out sequences to measure it on.
    """
    if task.stretch is None:
        raise ValueError(f"{run}: its task has no held-out sequences to measure it on")
    known = load_weights(run, task.model, weights)
    saved = checkpoint.load_tree(checkpoint.checkpoints(run / CHECKPOINTS)[-1])
    # A curriculum is where training left it, and so is a truncation that follows what is measured.
    task.stream.load_state_dict(saved["stream"])
    task.model.eval()
    found, biases = measure(task.model, task, lookahead)
    print(f"{weights} model, update {known['update']:,} of {run}; {found.positions:,} positions")
    median, most, largest = found.norms
    print(f"norm of a state's gradient: median {median:.3g}, 99 % {most:.3g}, largest {largest:.3g}")
    own = (saved.get("truncation") or {}).get("truncation", task.model.truncated.truncation)
    for line in lines(found, biases, own):
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


def along(run: Path) -> None:
    """What --horizon-every measured in training: a table, horizon-along.csv and horizon-along.png."""
    rows = read_log(run / LOG, "horizon")
    if not rows:
        return
    steps = sorted({int(name.rsplit("_", 1)[1]) for row in rows for name in row if name[:6] == "cosine"})
    print(
        "along the run: cosine of the gradient of the next so many steps, and the bias of a window of them"
    )
    table = [("symbols", *(str(one) for one in steps))]
    for row in rows:
        cells = (f"{shown(row, 'cosine', one)} {shown(row, 'bias', one)}" for one in steps)
        table.append((f"{row['symbols']:,}", *cells))
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print(" | ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    head = ("update", "symbols", *(f"{name}_{one}" for one in steps for name in ALONG))
    with (run / "horizon-along.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *([row.get(name) for name in head] for row in rows)])
    draw_along(rows, steps, run / "horizon-along.png")
    print(run / "horizon-along.csv")
    print(run / "horizon-along.png")


def shown(row: dict, name: str, steps: int) -> str:
    """A figure of a sequence that had so many steps."""
    value = row.get(f"{name}_{steps}")
    return "-" if value is None else f"{value:.2f}"


def draw_along(rows: list[dict], steps: list[int], path: Path) -> None:
    """A PNG: each figure against symbols, a line for each number of steps."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(ALONG), figsize=(13, 3.6), layout="constrained")
    for axis, name in zip(axes, ALONG):
        for one in steps:
            known = [row for row in rows if f"{name}_{one}" in row]
            x, y = [row["symbols"] for row in known], [row[f"{name}_{one}"] for row in known]
            axis.plot(x, y, "o-", markersize=3, label=str(one))
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("symbols")
    axes[0].legend(title="steps")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def draw(found: Horizon, biases: list[Bias], path: Path) -> None:
    """A PNG: the two measures of the reach with their quartiles, and the bias, against steps."""
    plt = pyplot()
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
