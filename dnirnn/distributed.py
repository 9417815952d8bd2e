"""Data parallel training in a loop of one's own: what the ranks of torch.distributed share."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dnirnn.checks import check_tensors
from dnirnn.estimators import BPLambda, LeastSquares, SyntheticGradient


def broadcast(*modules: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Gives every rank the parameters and buffers that the group's first rank has.

    Raises RuntimeError where torch.distributed was not begun, and ValueError for an estimator that
    :func:`average_gradients` can't keep equal.
    """
    check(modules)
    first = dist.get_global_rank(group, 0) if group is not None else 0
    with torch.no_grad():
        for tensor in (t for module in modules for t in (*module.parameters(), *module.buffers())):
            dist.broadcast(tensor.detach(), first, group=group)


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

    Raises RuntimeError where torch.distributed was not begun, and ValueError for an estimator whose
    state is no gradient: a normalised SyntheticGradient, LeastSquares, BPLambda. Its ranks would drift
    apart.
    """
    check(modules)
    seen: dict[int, nn.Parameter] = {
        id(p): p for module in modules for p in module.parameters() if p.requires_grad
    }
    kinds: dict[tuple, list[nn.Parameter]] = {}
    for parameter in seen.values():
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    ranks = dist.get_world_size(group)
    for parameters in kinds.values():
        average(parameters, ranks, group)


def average(parameters: list[nn.Parameter], ranks: int, group: dist.ProcessGroup | None) -> None:
    """The same for parameters of one dtype and device, which a rank may have no gradients of."""
    there = parameters[0].new_tensor([float(p.grad is not None) for p in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([there, *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(flat, group=group)
    somewhere, *sums = flat.split([len(parameters), *(p.numel() for p in parameters)])
    missing = [p.grad is None for p in parameters]
    # Only where a rank lacks one does the host have to know what the others have.
    known = somewhere.tolist() if any(missing) else [1.0] * len(parameters)
    for parameter, total, count, lacks in zip(parameters, sums, known, missing):
        if not count:
            continue
        mean = (total / ranks).view_as(parameter)
        if lacks:
            parameter.grad = mean
        else:
            parameter.grad.copy_(mean)


def check(modules: tuple[nn.Module, ...]) -> None:
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules must be nn.Modules; got {type(module).__name__}")
        for part in module.modules():
            normalised = isinstance(part, SyntheticGradient) and part.normalise
            if normalised or isinstance(part, (LeastSquares, BPLambda)):
                raise ValueError(
                    f"{type(part).__name__}{'(normalise=True)' if normalised else ''} keeps a state that"
                    " is no gradient, and would drift apart between ranks: take a SyntheticGradient"
                    " without normalise, or train in one process"
                )
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("call torch.distributed.init_process_group first, or start with torchrun")


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
