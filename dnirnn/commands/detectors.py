"""detectors: where the layers of an HM-LSTM detect the end of a stretch of a text."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dnirnn.commands.shared import OK, add_run_folder, at_least_one
from dnirnn.config.network import device_of
from dnirnn.config.registry import TASKS
from dnirnn.config.saved import from_config
from dnirnn.data import Vocabulary
from dnirnn.data.corpus import beginning
from dnirnn.device import find_device
from dnirnn.model import SequenceModel
from dnirnn.training.trainer import load_weights, read_config, reading_config

WIDTH = 80  # characters a line
MARK, NEWLINE = "|", "↵"


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--text", metavar="TEXT", help="what it reads (default: the run's own test split)"
    )
    parent.add_argument(
        "--length",
        type=at_least_one,
        metavar="CHARACTERS",
        help="how much of it (default: all of --text; 400 characters of the test split)",
    )
    parent.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture (default: detectors.png in RUN)"
    )


def run(arguments: argparse.Namespace) -> int:
    detectors(
        arguments.run,
        arguments.weights,
        arguments.text,
        arguments.length,
        arguments.out,
        arguments.device,
    )
    return OK


def detectors(
    run: Path,
    weights: str,
    text: str | None,
    length: int | None,
    picture: Path | None,
    device: str = "cpu",
) -> None:
    """Prints a text with the detections of a run's model below it, and draws them.

    text: what the model reads; None: the test split of the text that it was trained on.
    length: of it, in characters; None: all of ``text``, or 400 of the test split.
    picture: the PNG; None: detectors.png in the run folder.

    Raises ValueError for a run that is none of char-lm with --core hm-lstm, and for a text that is
    empty or has a character that the model does not know.
    """
    place, config = find_device(device), read_config(run)
    if config.get("task") != "char-lm" or config.get("core") != "hm-lstm":
        raise ValueError(f"detectors needs a run of char-lm with --core hm-lstm; {run} is none")
    char_lm = TASKS["char-lm"]
    with reading_config(run):
        model, vocabulary = char_lm.restore(config)
    known = load_weights(run, model.to(place), weights)
    if text is None:
        options = from_config(char_lm.Options, config)
        text = beginning(char_lm.load_corpus(options).splits["test"], length or 400)
    text = text[:length]
    if not text:
        raise ValueError("--text and --length must leave at least one character")
    picture = picture or run / "detectors.png"
    found = detect(model, vocabulary, text)
    print(f"{weights} model, update {known['update']:,} of {run}")
    print(marked(text, found))
    print(shares(text, found))
    draw(text, found, picture)
    print(picture)


def detect(model: SequenceModel, vocabulary: Vocabulary, text: str) -> Tensor:
    """[T, L - 1], bool: the layers that detect an end at each character, read after a newline.

    Raises ValueError for a character that the model does not know.
    """
    core = model.truncated.core
    symbols = vocabulary.encode("\n" + text).to(device_of(model))
    model.eval()
    with torch.no_grad():
        inputs = model.encoder(symbols[:, None])
        found, _ = core.detectors(inputs, core.initial_state(1))
    return found[1:, 0].cpu() > 0


def marked(text: str, found: Tensor) -> str:
    """The text in lines; under each, a line a layer, marked below what it detects an end at."""
    lines = []
    for start in range(0, len(text), WIDTH):
        piece = slice(start, start + WIDTH)
        lines.append("         " + shown(text[piece]))
        for layer, row in enumerate(found[piece].T.tolist(), 1):
            marks = "".join(MARK if seen else " " for seen in row)
            lines.append(f"layer {layer}: {marks}".rstrip())
    return "\n".join(lines)


def shown(text: str) -> str:
    """One visible character for each."""
    return "".join(one if one.isprintable() else NEWLINE if one == "\n" else "?" for one in text)


def shares(text: str, found: Tensor) -> str:
    """A line a layer: how often it detects, and how well that finds what stands between two words.

    Its recall is how much of the spaces and line ends it detects, its precision how much of what it
    detects are such; detections that know nothing have the precision given first, of all characters.
    """
    between = torch.tensor([one.isspace() or one == "_" for one in text])  # Penn Treebank has _
    lines = [f"spaces and line ends are {between.double().mean():.1%} of the characters"]
    for layer, seen in enumerate(found.T, 1):
        line = f"layer {layer}: at {seen.double().mean():.1%} of the characters"
        if between.any():
            line += f"; of the spaces recall {seen[between].double().mean():.1%}"
            precision = f"{between[seen].double().mean():.1%}" if seen.any() else "none"
            line += f", precision {precision}"
        lines.append(line)
    return "\n".join(lines)


def draw(text: str, found: Tensor, path: Path) -> None:
    """Writes a PNG: the text in lines; over each, a row of boxes a layer, dark at an end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    layers = found.shape[1]
    starts = range(0, len(text), WIDTH)
    size = (0.14 * WIDTH + 1, (0.22 * layers + 0.35) * len(starts) + 0.4)
    figure, axes = plt.subplots(len(starts), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, start in zip(axes[:, 0], starts):
        piece = text[start : start + WIDTH]
        axis.pcolormesh(
            found[start : start + WIDTH].T.double(), cmap="Greys", vmin=0, vmax=1,
            edgecolors="0.85", linewidth=0.3,
        )
        axis.set_xlim(0, WIDTH)
        axis.set_xticks([i + 0.5 for i in range(len(piece))], shown(piece), family="monospace")
        axis.set_yticks([i + 0.5 for i in range(layers)], [f"{i + 1}" for i in range(layers)])
        axis.tick_params(length=0, labelsize=8)
        axis.spines[:].set_visible(False)
    figure.supylabel("layer", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=140, format="png")
    partial.replace(path)
    plt.close(figure)
