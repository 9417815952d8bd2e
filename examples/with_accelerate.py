"""plain_loop.py under accelerate: `dnirnn.backward` stands where `accelerator.backward` stood.

    pip install accelerate
    python examples/with_accelerate.py

With mixed precision in float16 accelerate has a scaler, which `backward` takes. On several processes
do not prepare the network: `broadcast` and `average_gradients` as in with_ddp.py.
"""

from accelerate import Accelerator
from plain_loop import EPOCHS, loss_of, make, report, windows

import dnirnn


def train() -> list[float]:
    """The loss of every update."""
    accelerator = Accelerator(cpu=True)
    network, optimizer = accelerator.prepare(*make())
    state, losses = accelerator.unwrap_model(network).initial_state(), []
    for _ in range(EPOCHS):
        for x, y in windows():
            logits, state, interfaces = network(x.to(accelerator.device), state)
            loss = loss_of(logits, y.to(accelerator.device))
            dnirnn.backward(loss, interfaces, reduction="mean", scaler=accelerator.scaler)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    report(train())
