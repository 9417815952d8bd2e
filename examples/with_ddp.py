"""plain_loop.py on several processes, each with its share of the streams.

    torchrun --nproc_per_node 2 examples/with_ddp.py

`broadcast` and `average_gradients` stand in the place of DistributedDataParallel, which averages what
one loss's backward pass reaches: an estimator is fitted after it.
"""

import torch
import torch.distributed as dist
from plain_loop import EPOCHS, STREAMS, loss_of, make, report, windows

import dnirnn
from dnirnn.distributed import average_gradients, broadcast, rows_of


def train() -> list[float]:
    """The loss of every update, over all rows."""
    network, optimizer = make()
    broadcast(network)
    state, losses = rows_of(network.initial_state(STREAMS), 0), []
    for _ in range(EPOCHS):
        for x, y in windows():
            logits, state, interfaces = network(rows_of(x), state)
            loss = loss_of(logits, rows_of(y))
            dnirnn.backward(loss, interfaces, reduction="mean")
            average_gradients(network)
            optimizer.step()
            optimizer.zero_grad()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append(float(mean) / dist.get_world_size())
    return losses


if __name__ == "__main__":
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    losses = train()
    if dist.get_rank() == 0:
        report(losses)
    dist.destroy_process_group()
