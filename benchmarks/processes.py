"""One network in one process, data parallel, in torch's pipelines, and decoupled: who wins where.

    python -m benchmarks.processes --ranks 2 --delays 0 1 10 50 --slow 0 20 --out results/processes

A network of equal layers on scikit-learn's digits, cut into as many parts as there are ranks, is
trained with the same batches

    one         in one process with all cores
    ddp         by torch's DistributedDataParallel, every rank with its rows of the batch
    gpipe, 1f1b by torch.distributed.pipelining, for each number of microbatches
    decoupled   by dnirnn.DecoupledParallel with cDNI predictors, for each staleness

over gloo on this machine, every rank with one thread. Every message of a pipeline and of decoupled
takes ``--delays`` milliseconds longer, and an all-reduce of R ranks 2 (R - 1) times that, as a ring has
it; ``--slow`` adds milliseconds to the last rank's forward pass of each batch.

busy: the share of the time that a rank computed in (its CPU time, and what --slow added). MB: what a
rank sent per update. floor: updates a second if nothing were ever waited for: the slowest part alone.
Writes runs.json (all rounds) and table.md.
"""

import argparse
import json
import os
import queue
import socket
import threading
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import dnirnn
from dnirnn.data import images

CLASSES = 10
SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
SENT = {"bytes": 0, "slept": 0.0}  # by this process


class Slow(nn.Module):
    """A part whose forward pass of a whole batch takes so many seconds longer."""

    def __init__(self, part: nn.Module, seconds: float, batch: int):
        super().__init__()
        self.part, self.seconds, self.batch = part, seconds, batch

    def forward(self, x: Tensor) -> Tensor:
        if self.seconds and self.training:
            more = self.seconds * len(x) / self.batch
            time.sleep(more)
            SENT["slept"] += more
        return self.part(x)


def parts_of(options: argparse.Namespace, ranks: int) -> list[nn.Module]:
    torch.manual_seed(options.seed)
    sizes = [64, *[options.width] * options.layers]
    layers = [
        nn.Sequential(nn.Linear(i, o), nn.LayerNorm(o), nn.ReLU()) for i, o in zip(sizes, sizes[1:])
    ]
    bounds = [options.layers * rank // ranks for rank in range(ranks + 1)]
    parts = [nn.Sequential(*layers[a:b]) for a, b in zip(bounds, bounds[1:])]
    parts[-1].append(nn.Linear(options.width, CLASSES))
    slow = [0.0] * (ranks - 1) + [options.slow_seconds]
    return [Slow(part, seconds, options.batch) for part, seconds in zip(parts, slow)]


class Batches:
    """The digits, in an order that all ranks draw alike."""

    def __init__(self, options: argparse.Namespace):
        known = images.load("builtin", None)
        self.x, self.y = (self.ready(known, "train", i) for i in (0, 1))
        self.test = self.ready(known, "test", 0), self.ready(known, "test", 1)
        self.draw, self.batch = torch.Generator().manual_seed(options.seed), options.batch

    def ready(self, known, split: str, which: int) -> Tensor:
        found = known.splits[split][which]
        return found if which else found.float().flatten(1) / known.white

    def __call__(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(self.y), (self.batch,), generator=self.draw)
        return self.x[rows], self.y[rows]


class Line(threading.Thread):
    """What this rank sends to another, each message ``delay`` seconds after it was handed over."""

    def __init__(self, delay: float):
        super().__init__(daemon=True)
        self.delay, self.waiting = delay, queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            due, operation, work = self.waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            dist.send(operation.tensor, operation.peer, operation.group, operation.tag)
            work.set()

    def send(self, operation: dist.P2POp) -> "Sending":
        work = Sending()
        self.waiting.put((time.monotonic() + self.delay, operation, work))
        return work


class Sending(threading.Event):
    def wait(self, timeout=None) -> bool:
        return super().wait()


def delay_messages(seconds: float) -> None:
    """Every send of torch's pipelines takes so long; counts what is sent."""
    lines: dict[int, Line] = {}

    def batch(operations: list[dist.P2POp]) -> list:
        works = []
        for one in operations:
            if one.op is dist.irecv:
                works.append(dist.irecv(one.tensor, one.peer, one.group, one.tag))
            else:
                SENT["bytes"] += one.tensor.nbytes
                works.append(lines.setdefault(one.peer, Line(seconds)).send(one))
        return works

    dist.batch_isend_irecv = batch


def delayed_all_reduce(seconds: float, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A hook for DistributedDataParallel: the mean, so many seconds later."""
    flat, ranks = bucket.buffer().div_(dist.get_world_size()), dist.get_world_size()
    SENT["bytes"] += flat.nbytes * 2 * (ranks - 1) // ranks
    found = torch.futures.Future()
    work = dist.all_reduce(flat, async_op=True)

    def finish() -> None:
        work.wait()
        time.sleep(seconds)
        found.set_result(flat)

    threading.Thread(target=finish, daemon=True).start()
    return found


# A way of training is made of (rank, ranks, options): (learn(x, y), the modules here, end())


def one(rank: int, ranks: int, options: argparse.Namespace):
    network = nn.Sequential(*parts_of(options, options.ranks))
    optimizer = torch.optim.Adam(network.parameters(), options.lr)
    return partial(step, network, optimizer), network, lambda: None


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def ddp(rank: int, ranks: int, options: argparse.Namespace):
    network = nn.Sequential(*parts_of(options, ranks))
    # The slow rank is slow in its own rows only; a part's share of them is the whole network's.
    for part in network:
        part.seconds = options.slow_seconds / ranks if rank == ranks - 1 else 0.0
        part.batch = options.batch // ranks
    wrapped = DistributedDataParallel(network)
    late = 2 * (ranks - 1) * options.delay_seconds
    wrapped.register_comm_hook(late, delayed_all_reduce)
    optimizer = torch.optim.Adam(network.parameters(), options.lr)
    rows = slice(rank * options.batch // ranks, (rank + 1) * options.batch // ranks)
    return lambda x, y: step(wrapped, optimizer, x[rows], y[rows]), network, lambda: None


def pipeline(kind: str, pieces: int, rank: int, ranks: int, options: argparse.Namespace):
    delay_messages(options.delay_seconds)
    part = parts_of(options, ranks)[rank]
    optimizer = torch.optim.Adam(part.parameters(), options.lr)
    stage = PipelineStage(part, rank, ranks, torch.device("cpu"))
    schedule = SCHEDULES[kind](stage, pieces, loss_fn=F.cross_entropy)

    def learn(x: Tensor, y: Tensor) -> None:
        if rank == 0:
            schedule.step(x)
        elif rank == ranks - 1:
            schedule.step(target=y)
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad()

    return learn, part, lambda: None


def decoupled(staleness: int, rank: int, ranks: int, options: argparse.Namespace):
    part, last = parts_of(options, ranks)[rank], rank == ranks - 1
    width, adam = options.width, torch.optim.Adam
    cuts = [] if last else [dnirnn.SyntheticGradient(width, (), 1.0, 1.0, context_size=CLASSES)]
    network = dnirnn.DecoupledParallel(
        [part],
        cuts,
        F.cross_entropy,
        [adam(part.parameters(), options.lr)],
        [adam(one.parameters(), options.estimator_lr) for one in cuts],
        staleness=staleness,
        delay=options.delay_seconds,
    )

    def learn(x: Tensor, y: Tensor) -> None:
        before = network.sent_bytes
        network.learn(x, y, F.one_hot(y, CLASSES).float())
        SENT["bytes"] += network.sent_bytes - before

    return learn, part, network.settle


def ways(options: argparse.Namespace) -> dict:
    found = {"one": one, "ddp": ddp}
    for kind in SCHEDULES:
        found |= {f"{kind} {n}": partial(pipeline, kind, n) for n in options.microbatches}
    found |= {f"decoupled {s}": partial(decoupled, s) for s in options.staleness}
    return {name: way for name, way in found.items() if name.split()[0] in options.ways}


def work(rank: int, ranks: int, port: int, name: str, options: argparse.Namespace, rows) -> None:
    """One rank of one way: rounds of updates, each measured; rows gets what every rank found."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores if name == "one" else 1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    batches = Batches(options)
    learn, module, settle = ways(options)[name](rank, ranks, options)
    for _ in range(options.warm_up):
        learn(*batches())
    settle()
    SENT.update(bytes=0, slept=0.0)
    spent, busy = 0.0, 0.0
    for number in range(1, options.rounds + 1):
        dist.barrier()
        began, computed, slept = time.perf_counter(), time.process_time(), SENT["slept"]
        for _ in range(options.updates):
            learn(*batches())
        settle()
        dist.barrier()
        seconds = time.perf_counter() - began
        spent += seconds
        busy += time.process_time() - computed + SENT["slept"] - slept
        accuracy = measure(module, name, rank, ranks, batches, options)
        updates = number * options.updates
        rows.put(
            dict(
                way=name, ranks=ranks, rank=rank, updates=updates, seconds=spent,
                busy=busy / spent / (cores if name == "one" else 1),
                mb=SENT["bytes"] / updates / 1e6, accuracy=accuracy,
            )
        )  # fmt: skip
    if name.startswith("decoupled"):
        rows.put(floor(module, rank, ranks, options, batches))
    dist.barrier()
    rows.close()
    rows.join_thread()
    os._exit(0)  # listening threads and all


def measure(module, name, rank, ranks, batches, options) -> float | None:
    """The accuracy on the test images, on rank 0."""
    states = [None] * ranks
    dist.all_gather_object(states, module.state_dict())
    if rank:
        return None
    if name in ("one", "ddp"):
        network = module
    else:
        network = nn.Sequential(*parts_of(options, ranks))
        for part, state in zip(network, states):
            part.load_state_dict(state)
    network.eval()
    with torch.no_grad():
        x, y = batches.test
        right = float((network(x).argmax(1) == y).float().mean())
    network.train()
    return right


def floor(module: nn.Module, rank: int, ranks: int, options, batches) -> dict:
    """Seconds an update of this part alone, all parts at once, nothing sent."""
    x, y = batches()
    given = x if rank == 0 else torch.rand(len(x), options.width, requires_grad=True)
    optimizer = torch.optim.Adam(module.parameters(), options.lr)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(options.updates):
        h = module(given)
        if rank == ranks - 1:
            F.cross_entropy(h, y).backward()
        else:
            h.backward(h.detach())
        optimizer.step()
        optimizer.zero_grad()
    return dict(way="floor", ranks=ranks, rank=rank, alone=(time.perf_counter() - began) / options.updates)


def trained(name: str, ranks: int, options: argparse.Namespace) -> list[dict]:
    """The rows of all ranks of one way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    rows = context.Queue()
    processes = [
        context.Process(target=work, args=(rank, ranks, port, name, options, rows))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    wanted = ranks * (options.rounds + name.startswith("decoupled"))
    found = []
    while len(found) < wanted:
        try:
            found.append(rows.get(timeout=1))
        except queue.Empty:
            if any(process.exitcode not in (None, 0) for process in processes):
                raise RuntimeError(f"{name}: a rank failed; its error is above") from None
    for process in processes:
        process.join()
    return found


def table(runs: list[dict]) -> str:
    """A line each way, link and slow rank, of its last round."""
    lines = [
        "| ranks | link, ms | slow, ms | way | updates/s | of the floor | accuracy | busy, by rank | MB an update, by rank |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    settings = dict.fromkeys((r["ranks_asked"], r["delay"], r["slow"]) for r in runs)
    for setting in settings:
        here = [r for r in runs if (r["ranks_asked"], r["delay"], r["slow"]) == setting]
        alone = [r["alone"] for r in here if r["way"] == "floor"]
        for way in dict.fromkeys(r["way"] for r in here if r["way"] != "floor"):
            rows = [r for r in here if r["way"] == way]
            last = max(r["updates"] for r in rows)
            ended = sorted((r for r in rows if r["updates"] == last), key=lambda r: r["rank"])
            rate = last / ended[0]["seconds"]
            share = f"{100 * rate * max(alone):.0f} %" if alone else "-"
            busy = " ".join(f"{r['busy']:.2f}" for r in ended)
            sent = " ".join(f"{r['mb']:.2f}" for r in ended)
            said = [*map(str, setting), way, f"{rate:.1f}", share, f"{ended[0]['accuracy']:.4f}", busy, sent]
            lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[2], help="processes that share the network")
    add("--delays", type=float, nargs="+", default=[0, 1, 10, 50], help="of a message, milliseconds")
    add("--slow", type=float, nargs="+", default=[0], help="of the last rank a batch, milliseconds")
    add("--ways", nargs="+", default=["one", "ddp", *SCHEDULES, "decoupled"])
    add("--microbatches", type=int, nargs="+", default=[2, 4, 8])
    add("--staleness", type=int, nargs="+", default=[1, 8])
    add("--layers", type=int, default=8)
    add("--width", type=int, default=512)
    add("--batch", type=int, default=256)
    add("--updates", type=int, default=100, help="a round")
    add("--rounds", type=int, default=5)
    add("--warm-up", type=int, default=10, help="updates before the clock")
    add("--lr", type=float, default=3e-4)
    add("--estimator-lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results/processes"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    runs: list[dict] = []
    for ranks in options.ranks:
        for delay in options.delays:
            for slow in options.slow:
                options.delay_seconds, options.slow_seconds = delay / 1000, slow / 1000
                for name in ways(options):
                    asked = argparse.Namespace(**{**vars(options), "ranks": ranks})
                    found = trained(name, 1 if name == "one" else ranks, asked)
                    runs += [{**r, "ranks_asked": ranks, "delay": delay, "slow": slow} for r in found]
                    (options.out / "runs.json").write_text(json.dumps(runs, indent=0))
                    (options.out / "table.md").write_text(table(runs))
                    print(table(runs).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
