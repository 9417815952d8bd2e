"""What the processes of a run share: the options that --parallel names."""

import dataclasses
from typing import ClassVar

from dnirnn import Core, Deep, Hierarchy
from dnirnn.groups import OptionGroup
from dnirnn.options import Config, Registry, flag, option


@dataclasses.dataclass(frozen=True)
class Sharing(Config):
    """What torchrun's processes share; one that --parallel names.

    in_parts: the network is cut in parts, which do not wait for one another.
    """

    registry: ClassVar[Registry] = Registry("parallel")
    in_parts: ClassVar[bool] = False


class DataParallel(Sharing, name="data"):
    """the rows of a batch (not with batch norm)"""


@dataclasses.dataclass(frozen=True)
class DecoupledParallel(Sharing, name="decoupled"):
    """the parts of the network: each process holds some of those between cuts, steps on a predictor's output, and does not wait for those above it; one process alone holds all"""

    in_parts = True

    staleness: int = option(
        1,
        "updates that the targets of the predictor between two processes may be behind; with more of"
        " them missing the lower one waits",
        "UPDATES",
        at_least=0,
    )



# What only updates of all parts together have, or one process that holds all parts.
OF_LOCKSTEP = ("warm_up", "ramp", "micro_batch", "fidelity_every", "open_cuts", "overlap", "average",
               "truncation_plan", "chunks_plan")  # fmt: skip


def in_parts(options: OptionGroup) -> bool:
    return getattr(options.choices().get("parallel"), "in_parts", False)


def check_in_parts(options: OptionGroup, core: str | None = None) -> None:
    """Raises ValueError for what does not go with parts of a recurrent network, the core ``core``."""
    if not in_parts(options):
        return
    how = "--parallel decoupled"
    if core is not None and options.core.name != core:
        raise ValueError(f"{how} takes --core {core} in this task; got {options.core}")
    if options.estimator.name not in ("none", "dni", "least-squares"):
        raise ValueError(f"{how} takes --estimator none, dni or least-squares; got {options.estimator}")
    if options.dtype != "float32":
        raise ValueError(f"{how} computes in float32; got --dtype {options.dtype}")
    refused = {name: getattr(options, name, None) for name in OF_LOCKSTEP}
    refused |= {name: getattr(options.estimator, name, None) for name in ("context", "auxiliary")}
    for name, value in refused.items():
        if value:
            raise ValueError(f"{flag(name)} does not go with {how}; got {value}")
    if options.truncation == "auto":
        raise ValueError(f"--truncation auto does not go with {how}")
    if getattr(options.estimator, "scale", None) == "auto":
        raise ValueError(f"--scale auto does not go with {how}")


def parts_of(core: Core) -> list[tuple[Core | None, int]]:
    """(a core, how much of the state is its own) of each part; None: no core, but messages received."""
    if isinstance(core, Deep):
        return list(zip(core.cores, core.sizes))
    if isinstance(core, Hierarchy):
        fast, slow, words = core.sizes  # cut at the slow one's ticks, nothing else is in the state
        return [(core.fast, fast), (core.slow, slow), (None, words)]
    raise ValueError(f"--parallel decoupled takes a core of parts; got {type(core).__name__}")
