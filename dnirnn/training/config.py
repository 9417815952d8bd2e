"""TrainerConfig: how to train, each setting with its bounds."""

from dataclasses import dataclass, field

from dnirnn.checks import (
    check_flags,
    check_instances,
    check_positive,
    check_sizes,
    check_words,
    is_int,
    is_number,
    shown,
)
from dnirnn.training.optimizers import DECAYS, optimizer_of, schedule_of


@dataclass(frozen=True)
class TrainerConfig:
    """How to train. Raises ValueError naming the field that does not fit.

    updates, minutes, symbols: budgets; the first one reached ends the run. minutes are of training,
        without evaluation and saving; symbols are targets that count.
    chunks: chunks of ``truncation`` steps an update, or "sequence": one update a whole sequence. A
        sequence's end ends an update early. Memory grows with it.
    optimizer, lr, options: the class's name in torch.optim, its learning rate, its other arguments;
        for everything but the estimator. Fused where torch offers it.
    estimator_optimizer, estimator_lr, estimator_options: the same for the estimator.
    clip, estimator_clip: largest norm of the gradient (of all parameters of the core, of the
        estimator); None: not clipped.
    lift, estimator_lift: smallest norm of it: a shorter gradient is scaled up, but for zero; None:
        not lifted.
    warm_up, blend: updates in which the estimator is fitted and not used, and those after them over
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
    evaluate_every, log_every: updates. An evaluation also ends the run; None: only then.
    fidelity_every: updates between two measurements of the estimator; None: none.
    checkpoint_every, checkpoint_seconds: updates, seconds of wall clock, from one checkpoint to the
        next; an evaluation that is the best so far and the run's end make one too.
    patience: evaluations without a better one after which the run ends.
    seed: seeds torch's global generator (dropout) when a run begins.
    tensorboard: also writes the rows to <folder>/tensorboard.
    """

    updates: int | None = None
    minutes: float | None = None
    symbols: int | None = None
    chunks: int | str = 1
    optimizer: str = "Adam"
    lr: float = 2e-3
    options: dict = field(default_factory=dict)
    estimator_optimizer: str = "Adam"
    estimator_lr: float = 1e-4
    estimator_options: dict = field(default_factory=dict)
    clip: float | None = 1.0
    estimator_clip: float | None = None
    lift: float | None = None
    estimator_lift: float | None = None
    warm_up: int = 0
    blend: int = 0
    micro_batch: int | None = None
    schedule: str | None = None
    schedule_options: dict = field(default_factory=dict)
    decay: str | None = None
    lr_warm_up: int = 0
    average: float | None = None
    evaluate_every: int | None = 1000
    fidelity_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 60.0
    log_every: int = 100
    patience: int | None = None
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        whole = (
            "updates",
            "micro_batch",
            "evaluate_every",
            "fidelity_every",
            "checkpoint_every",
            "patience",
        )
        for name in (*whole, "log_every", "chunks"):
            value = getattr(self, name)
            if (name in whole and value is None) or (name == "chunks" and value == "sequence"):
                continue
            if not is_int(value, 1):
                other = ' or "sequence"' if name == "chunks" else ""
                raise ValueError(f"{name} must be an int of at least 1{other}; got {shown(value)}")
        for name in ("warm_up", "blend", "lr_warm_up", "seed"):
            check_sizes(0, **{name: getattr(self, name)})
        norms = ("clip", "estimator_clip", "lift", "estimator_lift")
        positive = ("minutes", "symbols", *norms, "checkpoint_seconds")
        for name in (*positive, "lr", "estimator_lr"):
            value = getattr(self, name)
            if name in positive and value is None:
                continue
            if not is_number(value) or not value > 0:
                raise ValueError(f"{name} must be positive; got {shown(value)}")
        check_positive(lr=self.lr, estimator_lr=self.estimator_lr)
        for prefix in ("", "estimator_"):
            optimizer_of(prefix, getattr(self, f"{prefix}optimizer"))
        for name in ("options", "estimator_options", "schedule_options"):
            check_instances(dict, **{name: getattr(self, name)})
        check_flags(tensorboard=self.tensorboard)
        for prefix in ("", "estimator_"):
            largest, smallest = (getattr(self, f"{prefix}{name}") for name in ("clip", "lift"))
            if None not in (largest, smallest) and smallest > largest:
                raise ValueError(
                    f"{prefix}lift must be at most {prefix}clip, {largest}; got {smallest}"
                )
        if self.schedule is not None:
            schedule_of(self.schedule)
        if self.decay is not None:
            check_words(tuple(DECAYS), decay=self.decay)
        if self.decay is not None and self.schedule is not None:
            raise ValueError(
                f"decay and schedule can't both drive lr; got {self.decay!r} and {self.schedule!r}"
            )
        if self.lr_warm_up and self.schedule is not None:
            raise ValueError(
                f"lr_warm_up and schedule can't both drive lr; got {self.lr_warm_up} and"
                f" {self.schedule!r}"
            )
        if self.average is not None and not (is_number(self.average) and 0 < self.average < 1):
            raise ValueError(f"average must be in (0, 1), or None; got {shown(self.average)}")
        if self.decay is not None and self.updates is self.minutes is self.symbols is None:
            raise ValueError("decay needs a budget: updates, minutes or symbols")
        if self.updates is self.minutes is self.symbols is self.patience is None:
            raise ValueError("one of updates, minutes, symbols or patience must be given")
