"""plain_loop.py with weight normalisation: the recurrent weights are a direction and a length a row.

    python examples/with_weight_norm.py

Any parametrisation of torch goes, on a core as on an estimator's layers; register it before the
optimizer is made, since it puts other parameters in the weight's place.
"""

import torch
from plain_loop import EPOCHS, epoch, make, report
from torch.nn.utils.parametrizations import weight_norm


def train() -> list[float]:
    """The loss of every update."""
    network, _ = make()
    weight_norm(network.recurrent.core, "weight_hh_l0")
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses, state = [], network.initial_state()
    for _ in range(EPOCHS):
        more, state = epoch(network, optimizer, state)
        losses += more
    return losses


if __name__ == "__main__":
    report(train())
