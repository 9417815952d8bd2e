"""What a task gives to the command line."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from dnirnn.data import Batch, Stream
from dnirnn.groups import OptionGroup
from dnirnn.model import SequenceModel
from dnirnn.options import option
from dnirnn.progress import minutes
from dnirnn.training.config import TrainerConfig, Training

FIRST_TRUNCATION, BOUND = 8, 0.1  # of --truncation auto
# Settings of a trainer that not every task's options have.
OF_NETWORKS = (
    "horizon_every", "truncation_bound", "longest_truncation", "truncation_every", "truncation_plan",
    "chunks_plan",
)  # fmt: skip
Measure = Callable[[SequenceModel], dict[str, float]]


class Task(NamedTuple):
    """A task made ready: what is trained on what, and how it is judged.

    evaluate: metrics on schedule, with "bits" the one to make small.
    test: metrics of the best model, once, at the end.
    symbols_per_update: targets in an update, about.
    config: what distinguishes this run from others, JSON values.
    notice: a line that says what the figures are figures of.
    stretch: a batch of held-out sequences from their starts, to measure the estimator on, of about
        so many steps. None: it can't be measured.
    """

    model: SequenceModel
    stream: Stream
    evaluate: Measure
    test: Measure
    symbols_per_update: float
    config: dict[str, Any]
    notice: str
    stretch: Callable[[int], Batch] | None = None


@dataclasses.dataclass(frozen=True, init=False)
class TaskOptions(Training, OptionGroup):
    """run"""

    batch: int = option(32, "sequences trained side by side", "SEQUENCES", at_least=1)
    threads: int | None = option(
        None, "CPU threads; a resumed run is the same to the bit at the same number", "THREADS",
        at_least=1, shown="one a core", identity=False,
    )  # fmt: skip
    device: str = option(
        "cpu", "where to compute: cpu, cuda or cuda:N; a run may go on on another", "DEVICE",
        identity=False,
    )  # fmt: skip
    no_graphs: bool = option(
        False,
        "on a GPU: launch each operation of an update, in place of replaying all as one CUDA graph",
        identity=False,
    )
    quiet: bool = option(False, "no progress bar", identity=False)


class Figure(NamedTuple):
    """A metric as a table and a plot show it."""

    key: str
    label: str
    form: str
    lower_is_better: bool


def figures_of(result: dict) -> dict[str, float]:
    """The metrics of the best model: those of validation, and those of test over them."""
    return {**(result.get("best") or {}), **(result.get("test") or {})}


def steps_per_update(options: Any) -> int | None:
    """Steps an update, a chunk where the options say nothing of it; None: a whole sequence.

    Raises ValueError where they are not whole chunks.
    """
    steps, truncation = getattr(options, "update_steps", None), chunk_steps(options)
    if steps == "sequence":
        return None
    if steps is None:
        return truncation
    if steps % truncation:
        raise ValueError(f"--update-steps must be a multiple of --truncation {truncation}; got {steps}")
    return steps


def chunk_steps(options: Any) -> int:
    """--truncation; where it follows what is measured, what the model has before."""
    return FIRST_TRUNCATION if options.truncation == "auto" else options.truncation


def trainer_config(options: TaskOptions, symbols_per_update: float, decay: str) -> TrainerConfig:
    """The trainer's settings, counted in updates, from options that count symbols.

    decay: the task's own, for options that give neither a decay nor a schedule.
    """
    settings = [field.name for field in dataclasses.fields(Training)]
    settings += [name for name in OF_NETWORKS if hasattr(options, name)]
    given = {name: getattr(options, name) for name in settings}
    budget = minutes(options)
    if given["decay"] is None:
        bounded = not options.updates is options.symbols is budget is None
        given["decay"] = decay if bounded and options.schedule is None else None
    auto = getattr(options, "truncation", None) == "auto"
    if auto and given["truncation_bound"] is None:
        given["truncation_bound"] = BOUND
    moves = auto or given.get("truncation_plan") or given.get("chunks_plan")
    for name in ("evaluate_every", "fidelity_every", "horizon_every", "log_every"):
        if given.get(name) is not None and not moves:
            given[name] = max(1, round(given[name] / symbols_per_update))
    steps = steps_per_update(options)
    chunks = "sequence" if steps is None else steps // chunk_steps(options)
    return TrainerConfig(**{**given, "minutes": budget, "chunks": chunks})
