"""What a task gives to the command line."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dnirnn.data import Batch, Stream
from dnirnn.model import SequenceModel
from dnirnn.progress import minutes
from dnirnn.training.config import TrainerConfig

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
    """Steps an update; None: a whole sequence.

    Raises ValueError where they are not whole chunks.
    """
    steps = options.update_steps
    if steps == "sequence":
        return None
    if steps is None:
        return options.truncation
    if steps % options.truncation:
        raise ValueError(
            f"--update-steps must be a multiple of --truncation {options.truncation}; got {steps}"
        )
    return steps


def trainer_config(options: Any, symbols_per_update: float, decay: str) -> TrainerConfig:
    """The trainer's settings, counted in updates, from options that count symbols.

    decay: the task's own, for options that give neither a decay nor a schedule.
    """
    budgets = (minutes(options), options.updates, options.symbols)
    if options.decay is not None:
        decay = options.decay
    elif options.schedule is not None or all(budget is None for budget in budgets):
        decay = "none"
    steps = steps_per_update(options)

    def updates(symbols: float) -> int:
        return max(1, round(symbols / symbols_per_update))

    return TrainerConfig(
        updates=options.updates,
        minutes=minutes(options),
        symbols=options.symbols,
        chunks="sequence" if steps is None else steps // options.truncation,
        optimizer=options.optimizer,
        lr=options.lr,
        options=dict(options.optimizer_options),
        estimator_optimizer=options.estimator_optimizer,
        estimator_lr=options.estimator_lr,
        estimator_options=dict(options.estimator_optimizer_options),
        clip=options.clip or None,
        estimator_clip=options.estimator_clip or None,
        lift=options.lift or None,
        estimator_lift=options.estimator_lift or None,
        warm_up=options.warm_up,
        blend=options.blend,
        micro_batch=options.micro_batch,
        decay=None if decay == "none" else decay,
        lr_warm_up=options.lr_warm_up,
        average=options.average,
        schedule=options.schedule,
        schedule_options=dict(options.schedule_options),
        evaluate_every=updates(options.evaluate_every),
        fidelity_every=None if options.fidelity_every is None else updates(options.fidelity_every),
        checkpoint_seconds=options.checkpoint_seconds,
        log_every=updates(options.log_every),
        patience=options.patience,
        seed=options.seed,
        tensorboard=options.tensorboard,
    )
