"""plain_loop.py with its parameters held outside of the network, in a dictionary.

    python examples/with_functional_call.py

The gradients are added to the .grad of the tensors that were given, those of the estimator too.
"""

import torch
from plain_loop import EPOCHS, loss_of, make, report, windows
from torch.func import functional_call

import dnirnn


def train() -> list[float]:
    """The loss of every update."""
    network, _ = make()
    held = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    optimizer = torch.optim.Adam(held.values(), 0.01)
    state, losses = network.initial_state(), []
    for _ in range(EPOCHS):
        for x, y in windows():
            logits, state, interfaces = functional_call(network, held, (x, state))
            loss = loss_of(logits, y)
            dnirnn.backward(loss, interfaces, reduction="mean")
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    report(train())
