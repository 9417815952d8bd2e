"""What plain_loop.py trained as a program of torch.export, for texts and batches of any length.

    python examples/with_export.py

A program is for inference. Where it holds dnirnn's operators (an LSTM's is one) the process that loads
it needs them, and nothing else of dnirnn: torch.ops.load_library(dnirnn.ops.extension.__file__).
"""

from io import BytesIO

import torch
from plain_loop import EPOCHS, STREAMS, Network, epoch, loss_of, make, windows
from torch import Tensor, nn
from torch.export import Dim


class Reading(nn.Module):
    """The network without its cuts: symbols [T, B], state [B, S] -> (logits, state)."""

    def __init__(self, network: Network):
        super().__init__()
        self.embedding, self.readout = network.embedding, network.readout
        self.core = network.recurrent.core

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, state = self.core(self.embedding(x), state)
        return self.readout(output), state


def read(reads: nn.Module, state: Tensor) -> list[float]:
    """The loss of every window of the text."""
    losses = []
    for x, y in windows():
        logits, state = reads(x, state)
        losses.append(loss_of(logits, y).item())
    return losses


@torch.no_grad()
def exported(reads: nn.Module, state: Tensor) -> nn.Module:
    """``reads`` as it comes out of a file."""
    steps, rows = Dim("steps", min=1), Dim("rows", min=1)
    x = torch.zeros(3, len(state), dtype=torch.int64)
    shapes = {"x": {0: steps, 1: rows}, "state": {0: rows}}
    file = BytesIO()
    torch.export.save(torch.export.export(reads, (x, state), dynamic_shapes=shapes), file)
    file.seek(0)
    return torch.export.load(file).module()


@torch.no_grad()
def evaluate() -> tuple[list[float], list[float]]:
    """The losses of the network that was trained, and of the program that it was made."""
    network, optimizer = make()
    state = network.initial_state()
    for _ in range(EPOCHS):
        with torch.enable_grad():
            _, state = epoch(network, optimizer, state)
    reads, start = Reading(network).eval(), network.initial_state(STREAMS)
    return read(reads, start), read(exported(reads, start), start)


if __name__ == "__main__":
    own, program = evaluate()
    print(f"{sum(own) / len(own):.4f} nats a symbol, by the program {sum(program) / len(program):.4f}")
