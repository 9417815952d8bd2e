"""A network of equal layers on scikit-learn's digits, trained in every way.

A way is made of (rank, ranks, case): Way(learn, the modules here). A case's ``work`` is the seconds that
a part takes for a batch, a third of them forward, beside its real arithmetic, which is then small:
ranks that are simulated on fewer cores. ``slow``: what the last rank takes longer.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import dnirnn
from benchmarks.processes.transport import SPENT, delay_messages, delayed_all_reduce
from dnirnn.data import images

CLASSES = 10
SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
LR = 3e-4
FORWARD = 1 / 3  # of a part's work


class Way(NamedTuple):
    learn: Callable[[], None]
    module: nn.Module
    accuracy: Callable[[list[dict]], float] | None = None


def sleep(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)
        SPENT["slept"] += seconds


class Slept(torch.autograd.Function):
    """The identity, after some seconds of work forward, and some backward."""

    @staticmethod
    def forward(ctx, x: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        sleep(FORWARD * seconds)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        sleep((1 - FORWARD) * ctx.seconds)
        return gradient, None


class Part(nn.Module):
    """Layers that take so many seconds longer for a whole batch of so many rows."""

    def __init__(self, layers: list[nn.Module], seconds: float, rows: int):
        super().__init__()
        self.layers, self.seconds, self.rows = nn.Sequential(*layers), seconds, rows

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers(x)
        if not (self.seconds and self.training):
            return h
        return Slept.apply(h, self.seconds * len(x) / self.rows)


def parts_of(case: Namespace, ranks: int, work: float, slow: float = 0.0) -> list[Part]:
    """The network in as many parts; each takes ``work`` seconds, the last one ``slow`` more."""
    torch.manual_seed(case.seed)
    sizes = [64, *[case.width] * case.layers]
    layers = [
        nn.Sequential(nn.Linear(i, o), nn.LayerNorm(o), nn.ReLU()) for i, o in zip(sizes, sizes[1:])
    ]
    layers[-1].append(nn.Linear(case.width, CLASSES))
    ends = [case.layers * rank // ranks for rank in range(ranks + 1)]
    each = [layers[a:b] for a, b in zip(ends, ends[1:])]
    return [
        Part(one, work + slow * (rank == ranks - 1), case.batch) for rank, one in enumerate(each)
    ]


@cache
def digits():
    """Read before processes are forked: they need not import what reads them."""
    return images.load("builtin", None)


class Batches:
    """The digits, in an order that all ranks draw alike."""

    def __init__(self, case: Namespace):
        known = digits()
        self.x, self.y = (self.ready(known, "train", i) for i in (0, 1))
        self.test = self.ready(known, "test", 0), self.ready(known, "test", 1)
        self.draw, self.batch = torch.Generator().manual_seed(case.seed), case.batch

    def ready(self, known, split: str, which: int) -> Tensor:
        found = known.splits[split][which]
        return found if which else found.float().flatten(1) / known.white

    def __call__(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.y), (self.batch,), generator=self.draw)
        return self.x[rows], self.y[rows]


def judge(case: Namespace, batches: Batches, states: list[dict]) -> float:
    """The accuracy on the test images of the network with these parts' states."""
    network = nn.Sequential(*parts_of(case, len(states), 0.0)).eval()
    for part, state in zip(network, states):
        part.load_state_dict(state)
    with torch.no_grad():
        x, y = batches.test
        return float((network(x).argmax(1) == y).float().mean())


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def one(rank: int, ranks: int, case: Namespace) -> Way:
    """One process, on as healthy a machine as any."""
    (network,) = parts_of(case, 1, case.ranks * case.work)
    optimizer = torch.optim.Adam(network.parameters(), LR)
    batches = Batches(case)
    return Way(lambda: step(network, optimizer, *batches()), network, partial(judge, case, batches))


def ddp(rank: int, ranks: int, case: Namespace) -> Way:
    # A share of the rows of all parts: as much work as a part of the network on all rows.
    slow = case.slow * ranks if rank == ranks - 1 else 0.0
    (network,) = parts_of(case, 1, ranks * case.work, slow)
    wrapped = DistributedDataParallel(network)
    wrapped.register_comm_hook(case.delay, delayed_all_reduce)
    optimizer = torch.optim.Adam(network.parameters(), LR)
    rows = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    batches = Batches(case)

    def learn() -> None:
        x, y = batches()
        step(wrapped, optimizer, x[rows], y[rows])

    return Way(learn, network, lambda states: judge(case, batches, states[:1]))


def pipeline(kind: str, pieces: int, rank: int, ranks: int, case: Namespace) -> Way:
    delay_messages(case.delay)
    part, batches = parts_of(case, ranks, case.work, case.slow)[rank], Batches(case)
    optimizer = torch.optim.Adam(part.parameters(), LR)
    stage = PipelineStage(part, rank, ranks, torch.device("cpu"))
    schedule = SCHEDULES[kind](stage, pieces, loss_fn=F.cross_entropy)

    def learn() -> None:
        x, y = batches()
        if rank == 0:
            schedule.step(x)
        elif rank == ranks - 1:
            schedule.step(target=y)
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad()

    return Way(learn, part, partial(judge, case, batches))


def decoupled(staleness: int, rank: int, ranks: int, case: Namespace) -> Way:
    delay_messages(case.delay)
    part, last = parts_of(case, ranks, case.work, case.slow)[rank], rank == ranks - 1
    adam, batches = torch.optim.Adam, Batches(case)
    # A linear map by least squares: what an optimizer fits is behind for hundreds of updates, in which
    # Adam moves the lower part along its errors at full rate.
    cuts = [] if last else [dnirnn.LeastSquares(case.width, 1.0, 1.0, context_size=CLASSES)]
    network = dnirnn.DecoupledParallel(
        [part],
        cuts,
        F.cross_entropy,
        [adam(part.parameters(), LR)],
        [None] * len(cuts),
        staleness=staleness,
    )

    def learn() -> None:
        x, y = batches()
        network.learn(x, y, F.one_hot(y, CLASSES).float())

    return Way(learn, part, partial(judge, case, batches))


def floor(rank: int, ranks: int, case: Namespace) -> Way:
    """Perfect overlap: every part as fast as it goes, nothing sent, nothing waited for."""
    part, batches = parts_of(case, ranks, case.work, case.slow)[rank], Batches(case)
    optimizer = torch.optim.Adam(part.parameters(), LR)
    x, y = batches()
    given = x if rank == 0 else torch.rand(len(x), case.width, requires_grad=True)

    def learn() -> None:
        h = part(given)
        if rank == ranks - 1:
            F.cross_entropy(h, y).backward()
        else:
            h.backward(h.detach())
        optimizer.step()
        optimizer.zero_grad()

    return Way(learn, part)


def ways(ranks: int, per_rank: list[int], staleness: list[int]) -> dict[str, Callable]:
    """All of them by name; pipelines with so many microbatches a rank."""
    found: dict[str, Callable] = {"one": one, "ddp": ddp}
    for kind in SCHEDULES:
        found |= {f"{kind} {ranks * n}": partial(pipeline, kind, ranks * n) for n in per_rank}
    found |= {f"decoupled {s}": partial(decoupled, s) for s in staleness}
    return {**found, "floor": floor}
