"""The loop that the examples beside this one are in other frameworks: a character model that reads
one text in 8 streams, 8 steps an update, cut every 4 steps.

    python examples/plain_loop.py        (a second; the text that it learns is this file)
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dnirnn

SYMBOLS, STREAMS, STEPS, EPOCHS = 128, 8, 8, 3


class Network(nn.Module):
    """symbols [T, B], state [B, S] -> (logits [T, B, SYMBOLS], state, interfaces)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 16)
        core = dnirnn.LSTM(16, 32)
        estimator = dnirnn.SyntheticGradient(core.state_size, scale=0.5, discount=0.5)
        self.recurrent = dnirnn.Truncated(core, 4, estimator)
        self.readout = nn.Linear(32, SYMBOLS)

    def initial_state(self, batch_size: int = STREAMS) -> Tensor:
        return self.recurrent.core.initial_state(batch_size)

    def forward(self, x: Tensor, state: Tensor):
        output, state, interfaces = self.recurrent(self.embedding(x), state)
        return self.readout(output), state, interfaces


def make() -> tuple[Network, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = Network()
    return network, torch.optim.Adam(network.parameters(), 0.01)


def windows(length: int = 800) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: what is read and the symbols after it, each [STEPS, STREAMS]."""
    text = torch.tensor(list(Path(__file__).read_bytes()[:length])).view(STREAMS, -1).T
    for begin in range(0, len(text) - STEPS, STEPS):
        yield text[begin : begin + STEPS], text[begin + 1 : begin + STEPS + 1]


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def epoch(
    network: Network, optimizer: torch.optim.Optimizer, state: Tensor
) -> tuple[list[float], Tensor]:
    """The loss of every update, and the state that the next epoch goes on from."""
    losses = []
    for x, y in windows():
        logits, state, interfaces = network(x, state)
        loss = loss_of(logits, y)
        dnirnn.backward(loss, interfaces, reduction="mean")
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, state


def train() -> list[float]:
    network, optimizer = make()
    losses, state = [], network.initial_state()
    for _ in range(EPOCHS):
        more, state = epoch(network, optimizer, state)
        losses += more
    return losses


def report(losses: list[float]) -> None:
    print(f"{len(losses)} updates: {losses[0]:.2f} nats a symbol at first, {losses[-1]:.2f} at last")


if __name__ == "__main__":
    report(train())
