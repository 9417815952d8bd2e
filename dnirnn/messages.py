"""What ranks send one another without waiting for it: numbered tensors, received in a thread."""

import queue
import threading
import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dnirnn.distributed import RankLost, reaching

# A message is a header, then a tensor: its number, the dtype, the dimensions, the shape.
HEADER = 10
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BYE = -1


class Neighbour:
    """The rank above or below: what it sends is received in a thread, and waits here, in order."""

    def __init__(self, rank: int, group: dist.ProcessGroup, delay: float):
        self.rank, self.group, self.delay = rank, group, delay
        self.sending: deque = deque()
        self.sent_bytes = 0
        self.come: queue.SimpleQueue = queue.SimpleQueue()
        self.next: Any = None
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def put(self, number: int, tensor: Tensor) -> None:
        """Sends a tensor of that update, without waiting."""
        tensor = tensor.detach().contiguous()
        shape = [*tensor.shape, *[0] * (HEADER - 3 - tensor.dim())]
        header = torch.tensor([number, DTYPES.index(tensor.dtype), tensor.dim(), *shape])
        self.isend(header)
        self.isend(tensor)
        # What is being sent must stay alive; the other side always receives, so this ends.
        while len(self.sending) > 64:
            self.sending.popleft()[0].wait()

    def isend(self, tensor: Tensor) -> None:
        with reaching():
            self.sending.append((dist.isend(tensor, self.rank, self.group), tensor))
        self.sent_bytes += tensor.nbytes

    def say_bye(self) -> None:
        self.isend(torch.full((HEADER,), BYE))
        with reaching():
            for work, _ in self.sending:
                work.wait()
        self.sending.clear()

    def listen(self) -> None:
        try:
            while True:
                header = torch.empty(HEADER, dtype=torch.int64)
                dist.recv(header, self.rank, self.group)
                number, dtype, dims, *shape = header.tolist()
                if number == BYE:
                    break
                tensor = torch.empty(shape[:dims], dtype=DTYPES[dtype])
                dist.recv(tensor, self.rank, self.group)
                self.come.put((number, tensor, time.monotonic() + self.delay))
            self.come.put(RankLost(f"rank {self.rank} has closed its part of the network"))
        except RuntimeError as error:
            lost = RankLost(f"rank {self.rank} ended, or can't be reached")
            lost.__cause__ = error
            self.come.put(lost)

    def look(self, block: bool) -> bool:
        """Whether the next message is here; waits for it if asked to."""
        if self.next is None:
            try:
                self.next = self.come.get(block)
            except queue.Empty:
                return False
        if isinstance(self.next, RankLost):
            if block:
                raise self.next
            return False
        left = self.next[2] - time.monotonic()
        if left > 0 and block:
            time.sleep(left)
        return block or left <= 0

    def get(self, due: int | None = None) -> tuple[Any, bool]:
        """(the next message, whether it was waited for): its tensor where one of an update is due."""
        waited = not self.look(False)
        self.look(True)
        (number, tensor, _), self.next = self.next, None
        if due is None:
            return (number, tensor), waited
        if number != due:
            raise RuntimeError(f"rank {self.rank} sent update {number} where {due} is due")
        return tensor, waited

    def arrived(self) -> list[tuple[int, Tensor]]:
        """The messages that are here, (number, tensor)."""
        found = []
        while self.look(False):
            found.append(self.next[:2])
            self.next = None
        return found


class Loop:
    """What a Neighbour is to a process that holds the other side itself."""

    def __init__(self):
        self.come: deque = deque()

    def put(self, number: int, tensor: Tensor) -> None:
        self.come.append((number, tensor.detach()))

    def get(self, due: int | None = None) -> tuple[Any, bool]:
        number, tensor = self.come.popleft()
        return ((number, tensor) if due is None else tensor), False

    def arrived(self) -> list[tuple[int, Tensor]]:
        found = list(self.come)
        self.come.clear()
        return found
