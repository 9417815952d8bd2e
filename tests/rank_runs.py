"""Processes of one group of torch.distributed, over gloo on this machine, forked from the test's own."""

import os
import signal
import socket
import time
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_runs import UPDATES, Recall, make_model, make_trainer

from dnirnn.commands.cli import main
from dnirnn.distributed import RankLost, joined
from dnirnn.messages import Neighbour
from dnirnn.training.trainer import Interrupted

LOST, STOPPED, FAILED = 7, 8, 9  # exit codes: another rank ended; interrupted; anything else
PATIENCE = 60  # seconds in which all ranks must have ended where one has


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def worker(rank: int, environment: dict, work, results) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    code = 0
    try:
        with joined() as together:
            results.put((rank, work(together)))
            together.largest(0)  # none leaves before the others are done
    except BaseException as error:
        code = {RankLost: LOST, Interrupted: STOPPED}.get(type(error), FAILED)
        results.put((rank, traceback.format_exc()))
    # Without the cleaning up of the process that it was forked from.
    os._exit(code)


def start(ranks: int, work) -> tuple[list, mp.SimpleQueue]:
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(ranks))
    context = mp.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=worker, args=(r, address, work, results)) for r in range(ranks)]
    for process in processes:
        process.start()
    return processes, results


def codes_of(ranks: int, work) -> list[int]:
    """How every rank of work(ranks) ended: 0, LOST, STOPPED, FAILED, or minus a signal's number."""
    processes, _ = start(ranks, work)
    for process in processes:
        process.join(PATIENCE)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, f"{len(hanging)} of {ranks} ranks went on for {PATIENCE} s"
    return [process.exitcode for process in processes]


def run(ranks: int, work) -> list:
    """What work(ranks) returns, of each rank; work is called with its TorchRanks."""
    processes, results = start(ranks, work)
    found: dict = {}
    while len(found) < ranks and (any(p.is_alive() for p in processes) or not results.empty()):
        if results.empty():
            time.sleep(0.01)
        else:
            found.update([results.get()])
    for process in processes:
        process.join(PATIENCE)
    failed = [value for value in found.values() if isinstance(value, str)]
    assert not failed and len(found) == ranks, "\n".join(failed)
    return [found[rank] for rank in range(ranks)]


def resumable(folder, ranks, rows=6):
    """A run with everything that has a state, as small_runs.resumable, of several ranks."""
    return make_trainer(
        folder,
        model=make_model(dropout=0.2),
        stream=Recall(rows),
        updates=UPDATES,
        evaluate_every=5,
        checkpoint_every=4,
        schedule="CosineAnnealingLR",
        schedule_options={"T_max": UPDATES},
        estimator_clip=0.5,
        ranks=ranks,
    )


def kill_at(function: str, call: int) -> None:
    """SIGKILL to this process at the n-th call of stream.next, a message, os.fsync or a collective."""
    owner = {"next": Recall, "put": Neighbour, "fsync": os}.get(function, dist)
    original, calls = getattr(owner, function), 0

    def counted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, function, counted)


def command(said: list[str], kill: tuple[int, int] | None = None, slow: int | None = None):
    """The work of a rank that is this command, which joins the ranks itself.

    kill: (the rank, the n-th message that it sends), by which it is killed. slow: a rank that is slow,
    where every message is late besides.
    """

    def work(ranks) -> None:
        dist.destroy_process_group()
        if kill is not None and ranks.rank == kill[0]:
            kill_at("put", kill[1])
        if slow is not None:
            make_late(0.003, 0.003 * (ranks.rank == slow))
        code = main(said)
        os._exit(LOST if code == 1 else code)

    return work


def make_late(delay: float, slow: float) -> None:
    """Every message to this process takes longer, and it needs longer for every one that it sends."""
    begin, put = Neighbour.__init__, Neighbour.put

    def late(self, rank, group, _):
        begin(self, rank, group, delay)

    def slowly(self, *message):
        time.sleep(slow)
        put(self, *message)

    Neighbour.__init__, Neighbour.put = late, slowly
