"""Doubles of what a GPU has: a graph that records and replays, and a device that nobody may ask."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnirnn.training.updater import Updater


class Recorder(TorchDispatchMode):
    """Keeps every operation that runs under it, with the tensors and numbers that it was given."""

    def __init__(self):
        super().__init__()
        self.calls, self.found, self.made = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tensors_in((args, kwargs)):
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self.made:
                self.found.setdefault(memory.data_ptr(), (memory, memory.clone()))
        results = func(*args, **kwargs)
        self.made |= {out.untyped_storage().data_ptr() for out in tensors_in(results)}
        self.calls.append((func, args, kwargs, results))
        return results

    def undo(self) -> None:
        """Gives what was there before what it held."""
        for memory, held in self.found.values():
            memory.copy_(held)


def tensors_in(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Graphs:
    """Stands for CUDAGraphs: captures without effect, and replays the same operations.

    As with a CUDA graph, no Python runs in a replay: numbers are those of the capture, and every
    tensor is read and written where it lay then.
    """

    def __init__(self):
        self.captured, self.replays = 0, 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        rng, recorder = torch.get_rng_state(), Recorder()
        with recorder:
            run()
        recorder.undo()
        torch.set_rng_state(rng)

        def replay():
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, results in recorder.calls:
                    again = func(*args, **kwargs)
                    for into, value in zip(tensors_in(results), tensors_in(again)):
                        if into.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                            into.copy_(value)

        return replay


# What makes the host wait for a device, and what brings a number or a tensor there from the host.
WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "unique",
         "lift_fresh", "allclose")  # fmt: skip


class Waited(AssertionError):
    """An operation for which a host would have waited for its device."""


class NoWaiting(TorchDispatchMode):
    """Refuses every operation for which the host would wait for a device.

    On tensors of the device "meta", which hold nothing, what reads a value inside an operation
    fails by itself.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name.rpartition("::")[2]
        if name in WAITS:
            raise Waited(name)
        if name in ("index", "index_put", "index_put_"):
            if any(part is not None and part.dtype == torch.bool for part in args[1]):
                raise Waited(f"{name} by a mask")
        devices = {each.device.type for each in tensors_in((args, kwargs)) if each.dim()}
        if len(devices) > 1 or (name in ("_to_copy", "copy_") and kwargs.get("device")
                                not in (None, *{each.device for each in tensors_in(args)})):
            raise Waited(f"{name} from one device to another")
        return func(*args, **kwargs)


def unwatched(trainer, capture: Callable | None, capacity: int = 8) -> Updater:
    """Gives the trainer, on the CPU, the updater that it would have on a GPU."""
    old = trainer.updater
    trainer.updater = Updater(
        old.model, old.optimizers, old.bounds, old.rows, old.rows_at_once, old.unit,
        watch=False, capture=capture, capacity=capacity,
    )  # fmt: skip
    return trainer.updater
