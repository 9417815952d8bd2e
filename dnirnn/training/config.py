"""TrainerConfig: how to train. Each setting is defined once, for Python and the command line."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

from dnirnn.options import Config, key_value, option, override
from dnirnn.renamed import by_name_of_now
from dnirnn.training.layout import RENAMED
from dnirnn.training.optimizers import DECAYS, optimizer_of, schedule_of


@dataclass(frozen=True, init=False)
class Limits(Config):
    """budget: may change when a run is resumed"""

    updates: int | None = option(
        None, "stop after so many updates", "UPDATES", at_least=1, shown="no limit", identity=False
    )
    minutes: float | None = option(
        None, "stop after so much training time (evaluating and saving not counted)", "MINUTES",
        above=0, shown="10 where no other limit is given", identity=False,
    )  # fmt: skip
    symbols: int | None = option(
        None, "stop after so many training symbols", "SYMBOLS", at_least=1, shown="no limit",
        identity=False,
    )  # fmt: skip
    patience: int | None = option(
        None, "stop after so many evaluations without a better one", "EVALUATIONS", at_least=1,
        shown="never", may_change=True,
    )  # fmt: skip
    checkpoint_seconds: float | None = option(
        60.0, "time between two checkpoints", "SECONDS", above=0, identity=False
    )
    tensorboard: bool = option(
        False, "also log for TensorBoard, in the run folder", identity=False
    )


@dataclass(frozen=True, init=False)
class Training(Limits):
    """training"""

    optimizer: str = option("Adam", "the core's optimiser: a name in torch.optim", "NAME")
    optimizer_options: tuple = option(
        (), "its further options, such as betas=(0.9,0.99)", "KEY=VALUE", many=key_value
    )
    lr: float = option(1e-3, "the core's learning rate", "RATE", above=0, may_change=True)
    clip: float | None = option(
        1.0, "longest gradient (Euclidean norm) of the core in an update; 0: no limit", "NORM",
        at_least=0, may_change=True,
    )  # fmt: skip
    min_norm: float | None = option(
        0.0, "shortest gradient of the core in an update: a shorter one is scaled up; 0: no limit",
        "NORM", at_least=0, may_change=True,
    )  # fmt: skip
    decay: str | None = option(
        None,
        "how the core's learning rate falls to zero over the budget (minutes, updates or symbols)",
        choices=(*DECAYS, "none"),
        shown="the task's own where no --schedule is given",
        may_change=True,
    )
    lr_warm_up: int = option(
        0, "updates over which the core's learning rate rises to the whole by equal steps", "UPDATES",
        at_least=0, may_change=True,
    )  # fmt: skip
    average: float | None = option(
        None,
        "what an exponential moving average of the core's weights keeps of itself in an update: the"
        " average is evaluated and kept as the best",
        "FRACTION",
        above=0,
        below=1,
        shown="the weights themselves are",
    )
    schedule: str | None = option(
        None, "learning-rate schedule: a name in torch.optim.lr_scheduler", "NAME", shown="constant"
    )
    schedule_options: tuple = option(
        (), "its options, counted in updates, such as T_max=20000", "KEY=VALUE", many=key_value
    )
    estimator_optimizer: str = option(
        "Adam", "the predictor's optimiser: a name in torch.optim", "NAME", needs="descends"
    )
    estimator_optimizer_options: tuple = option(
        (), "its further options", "KEY=VALUE", many=key_value, needs="descends"
    )
    estimator_lr: float = option(
        1e-4, "the predictor's learning rate", "RATE", above=0, may_change=True, needs="descends"
    )
    estimator_clip: float | None = option(
        0.0, "longest gradient of the predictor in an update; 0: no limit", "NORM", at_least=0,
        may_change=True, needs="descends",
    )  # fmt: skip
    estimator_min_norm: float | None = option(
        0.0, "shortest gradient of the predictor in an update; 0: no limit", "NORM", at_least=0,
        may_change=True, needs="descends",
    )  # fmt: skip
    warm_up: int = option(
        0, "updates in which the predictor learns but is not used", "UPDATES", at_least=0,
        needs="fitted",
    )  # fmt: skip
    ramp: int = option(
        0, "updates after them over which it comes into full use", "UPDATES", at_least=0,
        needs="fitted",
    )  # fmt: skip
    micro_batch: int | None = option(
        None, "sequences computed at once; their gradients are summed up to one update", "SEQUENCES",
        at_least=1, shown="all of --batch", may_change=True,
    )  # fmt: skip
    evaluate_every: int | None = option(
        500_000, "training symbols between two evaluations on validation", "SYMBOLS", at_least=1,
        may_change=True,
    )  # fmt: skip
    fidelity_every: int | None = option(
        None,
        "training symbols between two comparisons of the predictor's output with the true"
        " gradient, on held-out sequences",
        "SYMBOLS",
        at_least=1,
        shown="never",
        needs="fitted",
    )
    log_every: int = option(
        25_600, "training symbols between two rows of the log", "SYMBOLS", at_least=1, may_change=True
    )
    seed: int = option(0, "seed of every random number", "SEED", at_least=0)


NORMS = ("clip", "min_norm", "estimator_clip", "estimator_min_norm")


@dataclass(frozen=True, init=False)
class TrainerConfig(Training):
    """How to train. Raises ValueError naming the field that does not fit.

    updates, minutes, symbols: budgets; the first one reached ends the run. minutes are of training,
        without evaluation and saving; symbols are targets that count.
    chunks: chunks of ``truncation`` steps an update, or "sequence": one update a whole sequence. A
        sequence's end ends an update early. Memory grows with it.
    optimizer, lr, optimizer_options: the class's name in torch.optim, its learning rate, its other
        arguments; for everything but the estimator. Fused where torch offers it.
    estimator_optimizer, estimator_lr, estimator_optimizer_options: the same for the estimator.
    clip, estimator_clip: largest norm of the gradient (of all parameters of the core, of the
        estimator); None or 0: not clipped.
    min_norm, estimator_min_norm: smallest norm of it: a shorter gradient is scaled up, but for zero; None or
        0: no bound.
    warm_up, ramp: updates in which the estimator is fitted and not used, and those after them over
        which its scale rises to the whole by equal steps.
    micro_batch: rows computed at once; their gradients add up to the whole batch's. It must divide
        the batch size. None: all rows. (Dropout's masks are drawn per piece.)
    schedule, schedule_options: a class's name in torch.optim.lr_scheduler and its arguments,
        stepped once an update (ReduceLROnPlateau: once an evaluation, on bits). It drives ``lr``;
        the estimator's rate stays.
    decay: "cosine" or "linear": lr falls to zero over the budget, whichever part of it is used up
        most: lr (1 + cos(pi f)) / 2 or lr (1 - f) at the fraction f. None: it stays. Only one of
        schedule and decay can drive it.
    lr_warm_up: updates over which the learning rate rises by equal steps to what it is without. Not
        with a schedule, which keeps its own rates.
    average: what an exponential moving average of the core's parameters keeps of itself in an update
        (see Average): it is evaluated, and kept as the best. None: there is none.
    evaluate_every, log_every: updates. An evaluation also ends the run; None: only then. Where they are
        counted in symbols, the defaults are 500,000 and 25,600.
    fidelity_every, horizon_every: updates between two measurements of the estimator, of the horizon;
        None: none.
    truncation_bound: the largest relative bias of an update's gradient, for a truncation that follows
        it (see AutoTruncation); what is counted in updates, but for budgets, warm-up and checkpoints,
        is then counted in symbols, since updates are of changing length. None: the truncation stays.
    longest_truncation, truncation_every: of that.
    truncation_plan, chunks_plan: the truncations and the chunks an update that follow the first ones, in
        equal shares of the budget (see dnirnn.training.plan). evaluate_every, log_every, fidelity_every
        and horizon_every are then counted in symbols too. (): they stay.
    checkpoint_every, checkpoint_seconds: updates, seconds of wall clock, from one checkpoint to the
        next; an evaluation that is the best so far and the run's end make one too.
    patience: evaluations without a better one after which the run ends.
    seed: seeds torch's global generator (dropout) when a run begins.
    tensorboard: also writes the rows to <folder>/tensorboard.

    On the command line evaluate_every, fidelity_every, horizon_every and log_every count training
    symbols.
    """

    chunks: int | str = option(1, "chunks an update", at_least=1, words=("sequence",))
    checkpoint_every: int | None = option(None, "updates between two checkpoints", at_least=1)
    horizon_every: int | None = option(
        None,
        "training symbols between two measurements of the horizon, as of dnirnn horizon, on held-out"
        " sequences",
        "SYMBOLS",
        at_least=1,
        shown="never",
    )
    truncation_bound: float | None = option(
        None,
        "with --truncation auto: the largest share of an update's gradient that the cuts may leave out;"
        " the truncation is the shortest of 1, 2, 4, ... for which they do",
        "FRACTION",
        above=0,
        shown="0.1",
    )
    longest_truncation: int = option(
        64, "with --truncation auto: the longest truncation, of which twice as many steps are measured",
        "STEPS", at_least=1,
    )
    truncation_every: int = option(
        500_000, "with --truncation auto: training symbols between two measurements", "SYMBOLS",
        at_least=1,
    )
    truncation_plan: tuple = option(
        (), "truncations that follow --truncation, in equal shares of the budget", "STEPS", at_least=1,
        many=int, shown="it stays",
    )  # fmt: skip
    chunks_plan: tuple = option(
        (), "chunks an update that follow those of --update-steps, in equal shares of the budget: a"
        " batch that grows", "CHUNKS", at_least=1, many=int, shown="they stay",
    )  # fmt: skip
    lr: float = override(Training, "lr", default=2e-3)
    evaluate_every: int | None = override(Training, "evaluate_every", default=1000)
    log_every: int = override(Training, "log_every", default=100)

    @staticmethod
    def spell(name: str) -> str:
        return name

    def __init__(self, **values: Any):
        for old, new in RENAMED.items():
            if old in values:
                warnings.warn(f"TrainerConfig's {old} is now {new}", DeprecationWarning, stacklevel=2)
                values[new] = values.pop(old)
        values = by_name_of_now(values, warn=True)
        plans = values.get("truncation_plan"), values.get("chunks_plan")
        if any(plans) or values.get("truncation_bound") is not None:
            for field in dataclasses.fields(Training):
                if field.name in ("evaluate_every", "log_every"):
                    values.setdefault(field.name, field.default)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, values.pop(field.name, field.default))
        for name in values:
            raise TypeError(f"TrainerConfig has no setting {name}")
        self.__post_init__()

    def kept(self) -> dict[str, Any]:
        """As a run folder holds it: with the defaults, so that settings to come are no other run's."""
        fields = dataclasses.fields(self)
        return {**dataclasses.asdict(self), "defaults": {one.name: one.default for one in fields}}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in NORMS:
            object.__setattr__(self, name, getattr(self, name) or None)
        for name in (*RENAMED.values(), "schedule_options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        for prefix in ("", "estimator_"):
            optimizer_of(prefix, getattr(self, f"{prefix}optimizer"))
            largest, smallest = (getattr(self, f"{prefix}{name}") for name in ("clip", "min_norm"))
            if None not in (largest, smallest) and smallest > largest:
                raise ValueError(
                    f"{prefix}min_norm must be at most {prefix}clip, {largest}; got {smallest}"
                )
        if self.schedule is not None:
            schedule_of(self.schedule)
        if self.decay == "none":
            object.__setattr__(self, "decay", None)
        if self.decay is not None and self.schedule is not None:
            raise ValueError(
                f"decay and schedule can't both drive lr; got {self.decay!r} and {self.schedule!r}"
            )
        if self.lr_warm_up and self.schedule is not None:
            raise ValueError(
                f"lr_warm_up and schedule can't both drive lr; got {self.lr_warm_up} and"
                f" {self.schedule!r}"
            )
        if self.decay is not None and self.updates is self.minutes is self.symbols is None:
            raise ValueError("decay needs a budget: updates, minutes or symbols")
        if self.updates is self.minutes is self.symbols is self.patience is None:
            raise ValueError("one of updates, minutes, symbols or patience must be given")
