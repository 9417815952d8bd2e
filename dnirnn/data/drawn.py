"""Streams of sequences that are drawn at random: whole, and given in pieces."""

import abc

import torch
from torch import Tensor

from dnirnn.data import Batch, Stream


class DrawnStream(Stream, abc.ABC):
    """One batch of sequences after another, all new, each begun when the one before is over.

    epochs: batches begun.
    """

    def __init__(self, batch_size: int, seed: int):
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.position, self.epochs = 0, 0.0
        self.drawn: Tensor | None = None

    @abc.abstractmethod
    def draw(self) -> Tensor:
        """What the next sequences are made of, from ``generator``."""

    @abc.abstractmethod
    def lay_out(self, drawn: Tensor) -> Batch:
        """The whole sequences that are made of it."""

    def next(self, steps: int | None) -> Batch:
        if self.position == 0:
            self.drawn = self.draw()
            self.sequence = self.lay_out(self.drawn)
            self.epochs += 1
        start, total = self.position, len(self.sequence.x)
        end = total if steps is None else min(start + steps, total)
        self.position = end % total
        return self.sequence.piece(start, end)

    def state_dict(self) -> dict:
        state = {
            "position": self.position,
            "epochs": self.epochs,
            "generator": self.generator.get_state(),
        }
        return {**state, "sequence": self.drawn} if self.position else state

    def load_state_dict(self, state: dict) -> None:
        self.position, self.epochs = state["position"], state["epochs"]
        self.generator.set_state(state["generator"])
        if self.position:
            self.drawn = state["sequence"]
            self.sequence = self.lay_out(self.drawn)
