"""plain_loop.py with a GradScaler and with gradients gathered over micro-batches.

    python examples/with_grad_scaler.py

`backward` is told of both, and the loss stays a mean over the rows at hand: nothing is to be divided
or scaled by hand, neither the loss nor the estimator's gradients. On a GPU the forward pass runs in
float16; on a CPU in float32, where the scaler changes nothing.
"""

import torch
from plain_loop import EPOCHS, STREAMS, loss_of, make, report, windows

import dnirnn

MICRO_BATCHES = 2


def train(device: str = "cuda" if torch.cuda.is_available() else "cpu") -> list[float]:
    """The loss of every update, over all rows."""
    network, optimizer = make()
    network.to(device)
    scaler = torch.amp.GradScaler(device)
    rows = torch.arange(STREAMS, device=device).chunk(MICRO_BATCHES)
    states, losses = [network.initial_state(len(own)) for own in rows], []
    for _ in range(EPOCHS):
        for x, y in windows():
            x, y, total = x.to(device), y.to(device), 0.0
            for i, own in enumerate(rows):
                with torch.autocast(device, torch.float16, enabled=device == "cuda"):
                    logits, states[i], interfaces = network(x[:, own], states[i])
                    loss = loss_of(logits, y[:, own])
                dnirnn.backward(
                    loss, interfaces, reduction="mean", micro_batches=MICRO_BATCHES, scaler=scaler
                )
                total += loss.item()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(total / MICRO_BATCHES)
    return losses


if __name__ == "__main__":
    report(train())
