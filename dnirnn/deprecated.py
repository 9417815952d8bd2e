"""The names of before, for one release: each warns, and does what the new one does."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dnirnn.unroll import Chunks, Unrolled


def deprecated(name: str, by: str) -> None:
    old = f"{name} is called {by} now; the old name goes with the next release"
    warnings.warn(old, DeprecationWarning, stacklevel=3)


class OldWays:
    """A core's three ways of being unrolled, now ``Core.unroll``, and the name of before of a loss of its own."""

    unroll: Any
    add_auxiliary_loss: Any

    def charge(self, amount: Tensor) -> None:
        """Deprecated: :meth:`add_auxiliary_loss`."""
        deprecated("Core.charge", "add_auxiliary_loss")
        self.add_auxiliary_loss(amount)

    def unroll_chunks(self, x_TBI, state_BS, probe, truncation, t0=0, reset=None, estimator=None):
        """Deprecated: :meth:`unroll`."""
        deprecated("Core.unroll_chunks", "Core.unroll")
        chunks = Chunks(len(x_TBI), truncation, t0, reset)
        found = self.unroll(x_TBI, state_BS, probe, chunks, estimator)
        return found.output, found.end, found.synthetic

    def unroll_pulling(self, x_TBI, state_BS, probe, truncation, t0=0, reset=None):
        """Deprecated: :meth:`unroll`, with ``vjp`` chunks."""
        deprecated("Core.unroll_pulling", "Core.unroll")
        chunks = Chunks(len(x_TBI), truncation, t0, reset, vjp=True)
        found = self.unroll(x_TBI, state_BS, probe, chunks)
        return found.output, found.end, lambda n, gradient: found.vjp(n, gradient)[0]

    def unroll_dense(self, x_TBI, state_BS, probe, truncation, t0=0, reset=None):
        """Deprecated: :meth:`unroll`, with ``dense`` chunks."""
        deprecated("Core.unroll_dense", "Core.unroll")
        chunks = Chunks(len(x_TBI), truncation, t0, reset, dense=True)
        return self.unroll(x_TBI, state_BS, probe, chunks)[:3]


def by_old_way(
    core: Any, x: Tensor, state: Tensor, probe: Tensor | None, chunks: Chunks
) -> Unrolled | None:
    """The call by what the core overrides of them; None where it overrides none."""
    way = "unroll_dense" if chunks.dense else "unroll_pulling" if chunks.vjp else "unroll_chunks"
    if getattr(type(core), way) is getattr(OldWays, way):
        return None
    deprecated(f"{type(core).__name__}.{way}", "unroll")
    given = (x, state, probe, chunks.truncation, chunks.t0, chunks.reset)
    output, end, third = getattr(core, way)(*given)
    if chunks.vjp:
        return Unrolled(output, end, vjp=lambda n, of_end: (third(n, of_end), None))
    return Unrolled(output, end, third if chunks.dense else None)


# Of an Interface: the name of before, the one of now, and what it is.
FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "entered": ("start", lambda cut: cut.start),
    "sent": ("end", lambda cut: cut.end),
    "steps": ("chunks.steps", lambda cut: 1 if cut.chunks is None else cut.chunks.steps),
    "charge": ("auxiliary_loss", lambda cut: cut.auxiliary_loss),
    "terminal": ("chunks.final", lambda cut: terminal(cut)),
    "bootstrap": ("estimator.bootstrap(interface)", lambda cut: cut.estimator.bootstrap(cut)),
    "pull": ("vjp", lambda cut: cut.vjp and (lambda n, gradient: cut.vjp(n, gradient)[0])),
    "predicted": ("estimator.predict(interface)", lambda cut: (cut.kept or {}).get("predicted")),
}


def terminal(cut: Any) -> Any:
    taught = cut.chunks is not None and cut.probe is not None and cut.estimator.terminal_target
    return cut.chunks.final if taught and cut.chunks.final is not False else None


def field_of_before(cut: Any, name: str) -> Any:
    if name not in FIELDS:
        raise AttributeError(f"an Interface has no {name!r}")
    by, value = FIELDS[name]
    deprecated(f"Interface.{name}", by)
    return value(cut)
