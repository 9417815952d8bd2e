"""A run of the command line in Python: its model, and the text that it reads and writes."""

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from dnirnn.checks import check_paths
from dnirnn.config.network import device_of
from dnirnn.config.registry import TASKS
from dnirnn.data import Vocabulary, Words
from dnirnn.device import find_device
from dnirnn.model import SequenceModel
from dnirnn.training.log import read_log
from dnirnn.training.trainer import LOG, load_weights, read_config, reading_config

STEPS = 1024  # characters scored at once


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and what belongs to it; :func:`load` makes it.

    folder: the run folder.
    config: the run's options, as config.json holds them.
    task: the module of its task.
    model: in eval mode.
    vocabulary: the characters of a char-lm, the words of a word-lm; None in other tasks.
    weights: what is known of the weights: update, symbols and, of the best, its metrics.
    """

    folder: Path
    config: dict
    task: ModuleType
    model: SequenceModel
    vocabulary: Vocabulary | Words | None
    weights: dict

    def rows(self, kind: str | None = None) -> list[dict]:
        """The log's rows, or those of a kind ("train", "valid"): ``pandas.DataFrame(run.rows())``."""
        return read_log(self.folder / LOG, kind)

    def encode(self, text: str) -> Tensor:
        """The symbols of a text, LongTensor [n]. Raises ValueError for an unknown character."""
        return self.characters().encode(text)

    def decode(self, symbols: Tensor) -> str:
        """The text of symbols [n]."""
        return self.characters().decode(symbols)

    def sample(
        self, length: int = 500, temperature: float = 1.0, prime: str = "", seed: int = 0
    ) -> str:
        """A text of ``length`` characters that the model writes after a newline and ``prime``.

        temperature: divides the logits; 0 takes the likeliest character each time.

        Raises ValueError for a negative or infinite temperature, a length below 1, or a prime with
        a character that the model does not know.
        """
        characters = self.characters()
        return self.task.sample(self.model, characters, length, temperature, prime, seed)

    def score(self, text: str) -> Tensor:
        """The bits [n], float64, that the model needs for each symbol of a text: characters or words.

        bits[i] = -log2 p(symbol i | newline, the symbols before); their mean is the bits per symbol.

        Raises ValueError for an empty text or a symbol that the model does not know.
        """
        if not text:
            raise ValueError("text must have at least one character; got ''")
        symbols = self.encode("\n" + text)[:, None].to(device_of(self.model))
        state, found = self.model.initial_state(1), []
        with torch.inference_mode():
            for t in range(0, len(symbols) - 1, STEPS):
                x, y = symbols[t : t + STEPS][: len(symbols) - 1 - t], symbols[t + 1 : t + 1 + STEPS]
                logits, state = self.model.unroll(x, state, t)
                found.append(self.model.loss(logits.double(), y)[:, 0].cpu() / math.log(2))
        return torch.cat(found)

    def characters(self) -> Vocabulary | Words:
        """The vocabulary. Raises ValueError where the run's task has none."""
        if self.vocabulary is None:
            raise ValueError(f"{self.folder} is a run of {self.config['task']}, which has no text")
        return self.vocabulary


def load(run: str | Path, weights: str = "best", device: str = "cpu") -> LoadedRun:
    """The model of a run folder, made by ``dnirnn train``, ready to use.

    weights: "best", those that did best on validation, or "latest".
    device: cpu, cuda or cuda:N.

    Raises ValueError where ``run`` is no run folder, holds no weights or is of a task that is not
    installed; CheckpointError (a ValueError too) where the weights are damaged.
    """
    check_paths(run=run)
    folder, place = Path(run), find_device(device)
    config = read_config(folder)
    name = config.get("task")
    if name not in list(TASKS):  # it may be anything
        raise ValueError(f"{folder} is a run of {name!r}; the tasks are {', '.join(TASKS)}")
    with reading_config(folder):
        model, more = TASKS[name].restore(config)
    known = load_weights(folder, model.to(place), weights)
    vocabulary = more if isinstance(more, (Vocabulary, Words)) else None
    return LoadedRun(folder, config, TASKS[name], model.eval(), vocabulary, known)
