"""One case: its ranks as processes, which are measured for so many seconds, and never hang."""

import os
import queue
import socket
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.processes.transport import SPENT

WARM_UP = 6  # updates, by whose time it is told how many to measure


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_of(case: Namespace) -> float:
    """Seconds after which a case is ended."""
    return 60 + 6 * case.seconds


def work(make: Callable, rank: int, processes: int, port: int, case: Namespace, rows) -> None:
    """One rank: a row of what it found, or of its error."""
    try:
        torch.set_num_threads(cores() if processes == 1 else 1)
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes,
            timeout=timedelta(seconds=limit_of(case)),
        )  # fmt: skip
        rows.put({"rank": rank, **measure(make(rank, processes, case), rank, processes, case)})
        dist.barrier()  # none leaves before the others are done
    except Exception:
        rows.put({"rank": rank, "failed": traceback.format_exc()})
    rows.close()
    rows.join_thread()
    os._exit(0)  # listening threads and all


def measure(way, rank: int, processes: int, case: Namespace) -> dict:
    """Updates in a row without a pause, and copies of the weights in the course of them.

    at: the seconds of this rank's clock, which all processes of a machine share, at the start and
    after each round; busy: the share of them in which it computed, or simulated that.
    """
    began = 0.0
    for number in range(WARM_UP):
        if number == WARM_UP // 2:
            began = time.monotonic()
        way.learn()
    each = torch.tensor((time.monotonic() - began) / (WARM_UP - WARM_UP // 2))
    dist.all_reduce(each, dist.ReduceOp.MAX)
    updates = max(1, round(case.seconds / case.rounds / float(each)))
    for _ in range(3 + processes):  # until a pipeline is full again
        way.learn()
    sent, slept, computed = SPENT["bytes"], SPENT["slept"], time.process_time()
    at, copies = [time.monotonic()], []
    for _ in range(case.rounds):
        for _ in range(updates):
            way.learn()
        at.append(time.monotonic())
        copies.append({name: t.clone() for name, t in way.module.state_dict().items()})
    computed = time.process_time() - computed + SPENT["slept"] - slept
    share = computed / (at[-1] - at[0]) / (cores() if processes == 1 and not case.work else 1)
    found = {
        "updates": updates, "at": at, "busy": share,
        "mb": (SPENT["bytes"] - sent) / case.rounds / updates / 1e6,
    }  # fmt: skip
    if way.accuracy is not None:
        all_copies = [None] * processes if rank == 0 else None
        dist.gather_object(copies, all_copies)
        if all_copies is not None:
            found["accuracy"] = [way.accuracy(list(states)) for states in zip(*all_copies)]
    return found


def measured(make: Callable, processes: int, case: Namespace) -> dict:
    """What a case gave: updates a second, accuracy over seconds, and by rank busy and mb; or failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Threads of OpenMP do not outlive a fork: a process of several begins anew.
    context = mp.get_context("spawn" if processes == 1 else "fork")
    rows, found, end = context.Queue(), [], time.monotonic() + limit_of(case)
    ranks = [
        context.Process(target=work, args=(make, rank, processes, port, case, rows), daemon=True)
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    problem = None
    while len(found) < processes and problem is None:
        try:
            found.append(rows.get(timeout=0.5))
            problem = found[-1].get("failed")
        except queue.Empty:
            if time.monotonic() > end:
                problem = f"it took more than {limit_of(case):.0f} s"
            elif not any(process.is_alive() for process in ranks):
                problem = "a rank ended without a word"
    for process in ranks:
        process.join(0 if problem else 5)
        if process.is_alive():
            process.kill()
            process.join()
    if problem is not None:
        print(problem, file=sys.stderr)
        return {"failed": problem.strip().splitlines()[-1]}
    return summed(sorted(found, key=lambda row: row["rank"]), case)


def summed(rows: list[dict], case: Namespace) -> dict:
    """Of all ranks. A round ends when the last rank has ended it."""
    ends = [max(times) for times in zip(*(row["at"] for row in rows))]
    seconds = [end - ends[0] for end in ends[1:]]
    updates = rows[0]["updates"] * case.rounds
    return {
        "updates_per_second": updates / seconds[-1],
        "updates": updates,
        "seconds": seconds,
        "accuracy": rows[0].get("accuracy"),
        "busy": [row["busy"] for row in rows],
        "mb": [row["mb"] for row in rows],
    }
