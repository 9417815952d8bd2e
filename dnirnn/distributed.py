"""Data parallel training: what the processes (ranks) of torch.distributed share.

For a loop of one's own: :func:`broadcast`, :func:`average_gradients`, :func:`rows_of`. For the
trainer: :class:`Ranks`, which is this process alone, and :class:`TorchRanks`.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dnirnn.checks import check_tensors
from dnirnn.data import Batch, Stream
from dnirnn.estimators import AutoScale, BPLambda, GradientEstimator, LeastSquares

T = TypeVar("T")
# What a rank waits for the others while one of them evaluates. One that dies is noticed at once.
WAIT = timedelta(hours=2)


class RankLost(RuntimeError):
    """Another rank of this run ended, or can't be reached; the message says what is known of it."""


# For a loop of one's own


def broadcast(*modules: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Gives every rank the parameters and buffers that the group's first rank has.

    From then on what the modules' estimators fit without a gradient (LeastSquares, the running size
    of ``normalise``, AutoScale) is of the rows of all ranks, too.

    Raises RuntimeError where torch.distributed was not begun, and ValueError for a module that can't
    be one over several ranks.
    """
    check(modules)
    first = dist.get_global_rank(group, 0) if group is not None else 0
    with torch.no_grad():
        for tensor in (t for module in modules for t in (*module.parameters(), *module.buffers())):
            dist.broadcast(tensor.detach(), first, group=group)
    together = TorchRanks(group)
    for estimator in estimators_of(modules):
        estimator.ranks = together


def average_gradients(*modules: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Replaces every parameter's .grad by its mean over the ranks: one all-reduce for each dtype.

    To be called after :func:`dnirnn.backward` and before clipping and the optimizers' steps, by every
    rank, with the same modules in the same order: the Truncated (core and estimator), and what reads
    it. With R ranks of b rows each it is then one process with R b rows, if loss and ``unit`` are those
    of the rank's own rows: a mean over them, with ``reduction="mean"`` or unit = 1 / (T b).

    torch's DistributedDataParallel can't stand here: it averages what one loss's backward pass
    reaches, and an estimator is fitted after it.

    A parameter that has a gradient on some ranks only counts as zero on the others. Where rows differ
    in whether they are fitted on (``final`` as a tensor; an auxiliary task beside resets), each rank's
    regression is a mean over its own such rows, and the ranks count alike.

    Raises RuntimeError where torch.distributed was not begun, and ValueError for a module that can't
    be one over several ranks, or an estimator that :func:`broadcast` was to be given first.
    """
    check(modules)
    for estimator in estimators_of(modules):
        fits_more = getattr(estimator, "normalise", False) or hasattr(estimator, "mean_norm")
        if estimator.ranks is None and (fits_more or isinstance(estimator, (LeastSquares, AutoScale))):
            raise ValueError(
                f"{type(estimator).__name__} fits more than gradients: give it to"
                " dnirnn.distributed.broadcast once, before the first update"
            )
    reduce([p for module in modules for p in module.parameters()], group=group)


def rows_of(batch: Tensor, dim: int = 1, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's share of a batch: its rows of ``dim``, 1 for [T, B, ...].

    Raises ValueError where the ranks can't have equally many.
    """
    check_tensors(batch=batch)
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    rows = batch.shape[dim]
    if rows % ranks:
        raise ValueError(f"batch must have a multiple of {ranks} rows, one share a rank; got {rows}")
    return batch.narrow(dim, rank * (rows // ranks), rows // ranks)


def reduce(
    parameters: Sequence[nn.Parameter],
    figures: Sequence[Tensor] = (),
    group: dist.ProcessGroup | None = None,
) -> list[Tensor]:
    """Makes every .grad its mean over the ranks; the sums over them of ``figures``, 0-d tensors.

    One all-reduce for each dtype and device of the parameters; the figures go with the first.
    """
    seen = {id(p): p for p in parameters if p.requires_grad}
    kinds: dict[tuple, list[nn.Parameter]] = {}
    for parameter in seen.values():
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    sums: list[Tensor] = []
    for alike in kinds.values():
        sums += reduce_alike(alike, () if sums else figures, group)
    return sums


def reduce_alike(
    parameters: list[nn.Parameter], figures: Sequence[Tensor], group: dist.ProcessGroup | None
) -> list[Tensor]:
    """The same for parameters of one dtype and device, which a rank may have no gradients of."""
    made = dict(dtype=parameters[0].dtype, device=parameters[0].device)
    there = torch.tensor([float(p.grad is not None) for p in parameters], **made)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = [there, *(f.detach().to(**made).reshape(1) for f in figures)]
    flat = torch.cat([*parts, *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(flat, group=group)
    ranks = dist.get_world_size(group)
    sizes = [len(parameters), len(figures), *(p.numel() for p in parameters)]
    somewhere, sums, *totals = flat.split(sizes)
    missing = [p.grad is None for p in parameters]
    # Only where a rank lacks one does the host have to know what the others have.
    known = somewhere.tolist() if any(missing) else [1.0] * len(parameters)
    for parameter, total, count, lacks in zip(parameters, totals, known, missing):
        if not count:
            continue
        mean = (total / ranks).view_as(parameter)
        if lacks:
            parameter.grad = mean
        else:
            parameter.grad.copy_(mean)
    return list(sums.unbind())


def estimators_of(modules: Sequence[nn.Module]) -> list[GradientEstimator]:
    parts = (part for module in modules for part in module.modules())
    return [part for part in parts if isinstance(part, GradientEstimator)]


def check(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules must be nn.Modules; got {type(module).__name__}")
        for name, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(
                part, nn.SyncBatchNorm
            ):
                raise ValueError(
                    f"{type(part).__name__} ({name}) normalises by the rows of its own process, so"
                    " several ranks would not be one process with all rows: take a network without it,"
                    " or train in one process"
                )
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("call torch.distributed.init_process_group first, or start with torchrun")


# For the trainer


class Ranks:
    """The processes that train one model together. This is one process: nothing is shared.

    rank, size: its number, and how many there are. The first one, 0, writes and measures.
    lockstep: whether they make every update together; else they meet only where something is measured
        or saved.
    """

    rank, size, lockstep = 0, 1, True
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def join(self, *modules: nn.Module) -> None:
        """Makes the modules one model: the first rank's, fitted on the rows of all."""

    def share(self, stream: Stream) -> Stream:
        """This rank's rows of a stream."""
        return stream

    def rows(self, state: Tensor) -> Tensor:
        """This rank's rows of what belongs to the rows of a whole batch, [B, ...]."""
        return state

    def whole(self, states: Sequence[Tensor]) -> Tensor:
        """What belongs to the rows of the whole batch, of what every rank has."""
        return torch.cat(list(states))

    def count(self, batch: Batch) -> int:
        """How many targets count in the ranks' batches."""
        return batch.count()

    def average(
        self, parameters: Sequence[nn.Parameter], total: Tensor, mean: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        """Makes every .grad its mean over the ranks; the sum of ``total`` and the mean of ``mean``."""
        return total, mean

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks."""
        return value

    def largest(self, *numbers: float) -> list[float]:
        """The largest on any rank, of each."""
        return list(numbers)

    def check_alike(self, options: dict) -> None:
        """Raises ValueError, on all ranks, where they were not given the same options."""
        own = zlib.crc32(json.dumps(options, sort_keys=True).encode())
        largest, negative = self.largest(own, -own)
        if largest != -negative:
            raise ValueError("every rank of a run must be given the same options")

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first rank, where alone it is called."""
        return make()

    def gathered(self, value: T) -> list[T]:
        """What every rank gives, on the first; nothing on the others."""
        return [value]

    def from_each(self, value: T) -> list[T]:
        """What every rank gives, on all of them."""
        return [value]


class TorchRanks(Ranks):
    """The processes of a group of torch.distributed, None for all there are.

    Every method that says something of other ranks must be called by all of them, in one order.
    Raises RankLost from it where one has ended.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def join(self, *modules: nn.Module) -> None:
        for estimator in estimators_of(modules):
            if isinstance(estimator, BPLambda):
                raise ValueError(
                    "BPLambda keeps a trace for each row of a batch of its own size: train it in one"
                    " process"
                )
        with reaching():
            broadcast(*modules, group=self.group)

    def share(self, stream: Stream) -> Stream:
        return stream.share(self.rank, self.size)

    def rows(self, state: Tensor) -> Tensor:
        return state.tensor_split(self.size)[self.rank].clone()

    def count(self, batch: Batch) -> int:
        if batch.weight is None:
            return batch.count() * self.size
        return round(float(self.sum(torch.tensor(float(batch.count()), dtype=torch.float64))))

    def average(
        self, parameters: Sequence[nn.Parameter], total: Tensor, mean: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        means = [mean] if isinstance(mean, Tensor) else []
        with reaching():
            sums = reduce(parameters, [total, *means], self.group)
        return sums[0].to(total.dtype), sums[1] / self.size if means else mean

    def sum(self, value: Tensor) -> Tensor:
        found = value.detach().clone()
        with reaching():
            dist.all_reduce(found, group=self.group)
        return found

    def largest(self, *numbers: float) -> list[float]:
        found = torch.tensor(numbers, dtype=torch.float64)
        with reaching():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return found.tolist()

    def from_first(self, make: Callable[[], T]) -> T:
        """Where it fails there, its error is raised there, and RankLost that says it on the others."""
        found: list[Any] = [None, None]
        failed: Exception | None = None
        if self.first:
            try:
                found[0] = make()
            except Exception as error:
                failed, found[1] = error, f"{type(error).__name__}: {error}"
        with reaching():
            dist.broadcast_object_list(found, group=self.group, group_src=0)
        if failed is not None:
            raise failed
        if found[1] is not None:
            raise RankLost(f"rank 0 stopped this run: {found[1]}")
        return found[0]

    def gathered(self, value: Any) -> list:
        found = [None] * self.size if self.first else None
        with reaching():
            dist.gather_object(value, found, group=self.group, group_dst=0)
        return found or []


class PartRanks(TorchRanks):
    """Ranks that each hold a part of one network, and see whole batches (see dnirnn.parallel)."""

    lockstep = False

    def join(self, *modules: nn.Module) -> None:
        with reaching(), torch.no_grad():
            for tensor in (t for one in modules for t in (*one.parameters(), *one.buffers())):
                dist.broadcast(tensor.detach(), group=self.group, group_src=0)

    def share(self, stream: Stream) -> Stream:
        return stream

    def rows(self, state: Tensor) -> Tensor:
        return state

    def whole(self, states: Sequence[Tensor]) -> Tensor:
        return states[0]

    def count(self, batch: Batch) -> int:
        return batch.count()

    def from_each(self, value: Any) -> list:
        found = [None] * self.size
        with reaching():
            dist.all_gather_object(found, value, group=self.group)
        return found


@contextmanager
def reaching() -> Iterator[None]:
    """Turns what torch.distributed raises where another rank has ended into RankLost."""
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:
        text = str(error).partition(". ")[0] or type(error).__name__
        raise RankLost(f"another rank of this run ended, or can't be reached ({text})") from error


@contextmanager
def joined(device: str = "cpu", kind: type[TorchRanks] = TorchRanks) -> Iterator[Ranks]:
    """The ranks that torchrun started this process as one of; one alone where nothing did.

    device: cpu (gloo) or cuda (nccl), where each rank takes the GPU of its LOCAL_RANK.
    kind: what they share.

    Raises ValueError for a device with a number, which all ranks would share.
    """
    size = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if size == 1:
        yield Ranks()
        return
    on_gpu = device.startswith("cuda")
    if ":" in device:
        raise ValueError(f"device must be cpu or cuda with several ranks, one GPU each; got {device}")
    if on_gpu and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    with reaching():
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=WAIT)
    yield kind()
    # After an error others may still wait for this one: it ends without them.
    dist.destroy_process_group()
