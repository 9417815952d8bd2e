"""Codistillation: workers that train separately, and teach one another by old copies of their weights.

Source: Anil, Pereyra, Passos, Ormandi, Dahl and Hinton, Large Scale Distributed Neural Network Training
Through Online Distillation, 2018, arXiv 1804.03235.
"""

import copy
import json
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from safetensors import torch as safetensors
from torch import Tensor, nn

from dnirnn.data import Stream
from dnirnn.distillation import Distillation, DistilledStream

Weights = Mapping[str, Tensor]
WAIT = timedelta(seconds=60)  # for the store to be there
PIECE = 2**22  # bytes of a value: the store takes 8 MiB at most


def worker_of_environment() -> tuple[int, int]:
    """(which worker this process is, how many there are), as torchrun sets them.

    Raises ValueError where it was not started by torchrun, or alone.
    """
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    if workers < 2 or "RANK" not in os.environ:
        raise ValueError(
            "--codistill needs several workers: start it with torchrun --nproc-per-node N -m dnirnn"
        )
    return int(os.environ["RANK"]), workers


def store_of_environment() -> dist.Store:
    """What torchrun's processes share: a store at MASTER_ADDR and MASTER_PORT.

    It is torchrun's own, which outlives a worker, or else that of the process of rank 0.
    """
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=os.environ["RANK"] == "0" and not of_torchrun,
        timeout=WAIT,
        wait_for_workers=False,
    )
    return dist.PrefixStore("dnirnn/codistillation", store)


class Exchange:
    """The newest weights of each worker, in a store of torch.distributed.

    Nobody waits for anybody: a worker puts its weights there, and takes of the others what there is.
    One that lags has old weights there, one that died its last ones. Where the store itself is gone, a
    warning says so, once, and nothing is given or taken any more.

    A worker's weights are there in pieces, twice: one set is written while the other can be read.
    """

    def __init__(self, store: dist.Store, worker: int, workers: int):
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be at least 0 and below {workers}; got {worker}")
        self.store, self.worker = store, worker
        self.others = [one for one in range(workers) if one != worker]
        self.given, self.gone = 0, False

    def give(self, update: int, weights: Weights) -> None:
        """Puts this worker's weights there, those after ``update`` updates."""
        data = safetensors.save({name: dense(tensor) for name, tensor in weights.items()})
        pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
        self.given += 1
        place = f"{self.worker}/{self.given % 2}"
        for i, piece in enumerate(pieces):
            self.ask(lambda i=i, piece=piece: self.store.set(f"{place}/{i}", piece))
        entry = dict(update=update, place=place, pieces=len(pieces), crc=zlib.crc32(data))
        self.ask(lambda: self.store.set(f"{self.worker}", json.dumps(entry)))

    def take(self, other: int, known: int | None = None) -> tuple[int, Weights] | None:
        """(their update, the weights) of another worker; None where there are none but those ``known``."""
        return self.ask(lambda: self.read(other, known))

    def read(self, other: int, known: int | None) -> tuple[int, Weights] | None:
        if not self.store.check([f"{other}"]):
            return None
        entry = json.loads(self.store.get(f"{other}"))
        if entry["update"] == known:
            return None
        data = b"".join(self.store.get(f"{entry['place']}/{i}") for i in range(entry["pieces"]))
        if zlib.crc32(data) != entry["crc"]:  # written anew meanwhile: there will be newer ones
            return None
        return entry["update"], safetensors.load(data)

    def ask(self, what):
        if self.gone:
            return None
        try:
            return what()
        except (RuntimeError, OSError) as error:  # torch's errors of the store are RuntimeErrors
            self.gone = True
            text = str(error).splitlines()[0]
            warnings.warn(
                f"the workers' store is gone ({text}): this one goes on with the copies that it has",
                stacklevel=2,
            )
            return None


class Copies(Distillation):
    """A :class:`Distillation` whose teachers are copies of the other workers.

    A copy teaches from update ``burn_in`` on, if there is one by then. Until then the loss is the
    plain one.

    model: the worker's own, whose like the others are. others: their numbers. The rest as there.
    """

    def __init__(
        self,
        model: nn.Module,
        others: list[int],
        weight: float = 0.5,
        temperature: float = 1.0,
        burn_in: int = 0,
    ):
        super().__init__([like(model) for _ in others], weight, temperature, fixed=False)
        self.others, self.burn_in = others, burn_in
        self.update = 0
        # Of each other worker its update and its weights, once there are any.
        self.known: dict[int, tuple[int, Weights]] = {}

    def asked(self) -> list[bool]:
        ready = self.update >= self.burn_in
        return [ready and other in self.known for other in self.others]

    def updates(self) -> dict[int, int]:
        """After how many updates each copy that there is was made, by its worker."""
        return {other: update for other, (update, _) in self.known.items()}

    def set(self, other: int, update: int, weights: Weights) -> None:
        """Another worker's weights, those after ``update`` updates. They are not changed later."""
        teacher = self.teachers[self.others.index(other)]
        teacher.load_state_dict(weights)
        self.known[other] = update, weights


def like(model: nn.Module) -> nn.Module:
    """A copy of a model, that learns nothing."""
    loss, model.loss = model.loss, None  # which may hold teachers
    try:
        made = copy.deepcopy(model)
    finally:
        model.loss = loss
    made.loss = loss
    return made.requires_grad_(False)


class CodistilledStream(DistilledStream):
    """A stream of a worker's own share, whose batches carry what the copies of the others predict.

    The copies, and from which update on they teach, are part of its state_dict.

    every: updates between two exchanges.
    """

    distillation: Copies

    def __init__(self, stream: Stream, copies: Copies, exchange: Exchange | None, every: int):
        super().__init__(stream, copies)
        self.exchange, self.every = exchange, every

    def before(self, update: int, weights: Callable[[], Weights]) -> None:
        """To be called before each update, the ``update``-th from 0: gives and takes weights, if due.

        weights: makes those of this worker, a state_dict.
        """
        copies = self.distillation
        copies.update = update
        if update % self.every or self.exchange is None:
            return
        self.exchange.give(update, weights())
        for other in self.exchange.others:
            known = copies.known.get(other, (None,))[0]
            found = self.exchange.take(other, known)
            if found is not None:
                copies.set(other, *found)

    def state_dict(self) -> dict:
        copies = {
            str(other): {"update": update, "weights": dict(weights)}
            for other, (update, weights) in self.distillation.known.items()
        }
        return {**super().state_dict(), "copies": copies, "update": self.distillation.update}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        copies = self.distillation
        copies.update = state["update"]
        there = {int(other): one for other, one in state["copies"].items()}
        if {other: one["update"] for other, one in there.items()} == copies.updates():
            return  # these very ones
        copies.known = {}
        for other, one in there.items():
            copies.set(other, one["update"], one["weights"])


def dense(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def share_of(symbols: Tensor, worker: int, workers: int) -> Tensor:
    """A worker's share of a text: one of as many stretches of about the same length."""
    return symbols[worker * len(symbols) // workers : (worker + 1) * len(symbols) // workers]
