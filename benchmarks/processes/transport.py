"""Slow links: every message of every way takes so many seconds longer, by the same means.

A message goes to a line of its own link, which hands it to gloo when its time has come; messages of one
link overlap on their way, as on a link of a high latency, and arrive in order. Nothing is claimed about how
wide the link is.
"""

import queue
import threading
import time

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

plain_isend = dist.isend
SPENT = {"bytes": 0, "slept": 0.0}  # by this process: what it sent, and its simulated work


class Line(threading.Thread):
    """What this rank sends to another."""

    def __init__(self, delay: float):
        super().__init__(daemon=True)
        self.delay, self.waiting = delay, queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            due, message, work = self.waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            plain_isend(*message).wait()
            work.set()

    def send(self, *message) -> "Sending":
        SPENT["bytes"] += message[0].nbytes
        work = Sending()
        self.waiting.put((time.monotonic() + self.delay, message, work))
        return work


class Sending(threading.Event):
    def wait(self, timeout=None) -> bool:
        return super().wait()


def delay_messages(seconds: float) -> None:
    """Has every isend of this process take so long: those of torch's pipelines and of dnirnn."""
    lines: dict[int, Line] = {}

    def isend(tensor: Tensor, dst=None, group=None, tag: int = 0, group_dst=None) -> Sending:
        to = group_dst if dst is None else dst  # all groups here are of all ranks
        if to not in lines:
            lines[to] = Line(seconds)
        return lines[to].send(tensor, to, group, tag)

    def batch(operations: list[dist.P2POp]) -> list:
        return [
            dist.irecv(one.tensor, one.peer, one.group, one.tag)
            if one.op is dist.irecv
            else isend(one.tensor, one.peer, one.group, one.tag)
            for one in operations
        ]

    # P2POp asks whether its operation is torch's own.
    distributed_c10d.isend = dist.isend = isend
    dist.batch_isend_irecv = batch


def delayed_all_reduce(seconds: float, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A hook for DistributedDataParallel: the mean, 2 (R - 1) messages later, as a ring of R has it."""
    ranks = dist.get_world_size()
    flat = bucket.buffer().div_(ranks)
    SPENT["bytes"] += flat.nbytes * 2 * (ranks - 1) // ranks
    found: torch.futures.Future[Tensor] = torch.futures.Future()
    due = time.monotonic() + 2 * (ranks - 1) * seconds
    work = dist.all_reduce(flat, async_op=True)

    def finish() -> None:
        work.wait()
        time.sleep(max(0.0, due - time.monotonic()))
        found.set_result(flat)

    threading.Thread(target=finish, daemon=True).start()
    return found
