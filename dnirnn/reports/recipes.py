"""What ``dnirnn reproduce`` runs: a full configuration for each table and budget.

Also what the paper's table has: Jaderberg et al., Decoupled Neural Interfaces using Synthetic
Gradients, ICML 2017.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dnirnn.config.registry import TASKS

# The tables to edit: what our best additions change in a task's options, plain DNI's being the
# paper's (one hidden layer, scale and discount 0.1) unless the budget has another.
SOLVED = dict(estimator="least-squares", scale=1.0, discount=0.9)
LAMBDA = dict(**SOLVED, trace_decay=0.8)
# Of an endless text a chunk an update is many updates, and much time between the chunks; this many
# steps an update are several chunks, whose backward passes run side by side.
UPDATE_STEPS = 40
OURS: dict[str, dict[str, Any]] = {
    "copy": LAMBDA,
    "repeat-copy": LAMBDA,
    "char-lm": dict(estimator_hidden=("linear",), update_steps=UPDATE_STEPS),
}

# Plain DNI on these tasks; at 0.1, the paper's, it came as far or a little less far.
STRONG = dict(scale=0.5, discount=0.5)

# What every run of a task gets, by budget. cpu: two cores; gpu: the paper's sizes.
BIT_SEQUENCES: dict[str, dict[str, Any]] = {
    "quick": dict(
        bits=1,
        hidden=64,
        batch=32,
        **STRONG,
        minutes=0.25,
        evaluate_every=20_000,
        log_every=20_000,
    ),
    "cpu": dict(
        bits=1,
        hidden=128,
        batch=32,
        **STRONG,
        minutes=0.75,
        evaluate_every=200_000,
        log_every=200_000,
    ),
    "gpu": dict(
        bits=8,
        hidden=256,
        batch=256,
        lr=7e-5,
        estimator_hidden=(256,),
        estimator_lr=7e-5,
        minutes=30.0,
        evaluate_every=800_000,
        log_every=800_000,
        device="cuda",
    ),
}
# The paper's size on two cores: vectors of 8 bits, which can't be guessed, 256 units, 20 minutes.
EIGHT_BITS = {
    "quick": {**BIT_SEQUENCES["quick"], "bits": 8},
    "cpu": {**BIT_SEQUENCES["cpu"], "bits": 8, "hidden": 256, "minutes": 20.0},
    "gpu": BIT_SEQUENCES["gpu"],
}
CHARACTERS: dict[str, dict[str, Any]] = {
    "quick": dict(
        hidden=64, batch=32, estimator_hidden=(64,), minutes=0.25, evaluate_every=100_000
    ),
    "cpu": dict(
        hidden=256,
        batch=32,
        estimator_hidden=(256,),
        minutes=1.75,
        evaluate_every=750_000,
        patience=4,
    ),
    "gpu": dict(
        hidden=1024,
        batch=256,
        estimator_hidden=(1024,),
        estimator_lr=7e-5,
        minutes=60.0,
        evaluate_every=1_000_000,
        patience=10,
        device="cuda",
    ),
}
SEEDS = {"quick": (0,), "cpu": (0, 1, 2), "gpu": (0, 1, 2)}
BUDGETS = tuple(SEEDS)


class Arm(NamedTuple):
    """A way of training that a table compares.

    name: on the command line and in the names of run folders. label: in tables and plots.
    changes: what it changes in its recipe's options.
    chunks: of an update; None: those of the options.
    truncations: those of its recipe that it is run at; None: all.
    rate_of: the arm whose learning rate it takes; None: one of its own.
    taught_by: the arm whose runs are its teachers: of its own seed, or of every seed.
    every_seed: whether it is of every seed.
    processes: that train it together.
    """

    name: str
    label: str
    changes: dict[str, Any]
    chunks: int | None = None
    truncations: tuple[int, ...] | None = None
    rate_of: str | None = None
    taught_by: str | None = None
    every_seed: bool = False
    processes: int = 1


BPTT = Arm("bptt", "BPTT", dict(estimator="none"))


class Search(NamedTuple):
    """How each arm finds its learning rate: the best on validation of short runs.

    rates: tried first; as long as the best is at their edge, the next one beyond it, in the ratio
        of the first two. minutes: of training, a run.
    """

    rates: tuple[float, ...]
    minutes: float


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A table to make: what is run, and what stands beside it.

    title: of the table. task: a name in TASKS. options: of every run, until an arm changes them.
    decays: how the learning rate falls, one after the other.
    figure: of the task, that is followed on the way. tested: that of the best model at the end,
        where it is another one.
    search: None: every arm is trained at the options' learning rate.
    against: the truncation of the baseline that everything is measured against; None: each its own.
    baseline: the arm that the others are measured against.
    remarks: lines that a report of its own begins with, from what is known of the runs.
    data: what a run is counted in beside seconds: "sequences" (of a batch), or what the task's
        symbols are.
    quoted: the paper's figures, by arm and truncation; of what is tested, or else of the figure.
    """

    title: str
    task: str
    options: Any
    arms: tuple[Arm, ...]
    truncations: tuple[int, ...]
    seeds: tuple[int, ...]
    figure: str
    tested: str | None = None
    decays: tuple[str, ...] = ("none",)
    search: Search | None = None
    against: int | None = None
    data: str = "sequences"
    quoted: dict[str, dict[int, str]] = dataclasses.field(default_factory=dict)
    baseline: Arm = BPTT
    remarks: Callable[["Recipe", Sequence[Any]], list[str]] | None = None


DNI = Arm("dni", "DNI", {})
AUX = Arm("aux", "DNI + Aux", dict(auxiliary=1.0))


def ours(task: str) -> Arm:
    return Arm("ours", "ours", OURS[task])


def quoted(truncations: Sequence[int], **figures: str) -> dict[str, dict[int, str]]:
    return {arm: dict(zip(truncations, words.split())) for arm, words in figures.items()}


LENGTHS = (2, 3, 4, 5)
QUOTED = {
    "copy": quoted(LENGTHS, bptt="7 8 10 8", dni="16 14 18 18", aux="16 17 19 18"),
    "repeat-copy": quoted(LENGTHS, bptt="7 5 19 23", dni="39 33 39 59", aux="39 59 67 59"),
    "ptb": quoted(
        (2, 3, 4, 5, 8, 20, 40),
        bptt="1.39 1.38 1.37 1.37 1.35 1.34/1.35 1.34",
        dni="1.37 1.36 1.35 1.35 1.34",
        aux="1.37 1.36 1.35 1.35 1.33",
    ),
}


def bit_sequences(
    task: str,
    title: str,
    figure: str,
    sizes: dict[str, dict[str, Any]] = BIT_SEQUENCES,
    **curriculum: Any,
) -> Callable[[str], Recipe]:
    def recipe(budget: str) -> Recipe:
        options = TASKS[task].Options(estimator="dni", **curriculum, **sizes[budget])
        return Recipe(
            title,
            task,
            options,
            (BPTT, DNI, AUX, ours(task)),
            LENGTHS,
            SEEDS[budget],
            figure,
            decays=("cosine",),
            quoted=QUOTED[task],
        )

    return recipe


def penn_treebank(budget: str) -> Recipe:
    searches = {
        "quick": Search((2e-3, 4e-3), 0.1),
        "cpu": Search((2e-3, 4e-3, 8e-3), 0.5),
        "gpu": Search((7e-5, 2.1e-4, 6.3e-4), 5.0),
    }
    options = TASKS["char-lm"].Options(estimator="dni", corpus="ptb", **CHARACTERS[budget])
    short = (
        DNI,
        # Of an endless text an update is a chunk, where the auxiliary task needs a next one.
        AUX._replace(chunks=2),
        ours("char-lm"),
        # What of ours is the synthetic gradients', and what the longer updates'.
        Arm(
            "bptt-40",
            "BPTT, 40 steps an update",
            dict(estimator="none", update_steps=UPDATE_STEPS),
        ),
    )
    arms = (BPTT, *(arm._replace(truncations=(2, 8)) for arm in short))
    return Recipe(
        "Penn Treebank characters",
        "char-lm",
        options,
        arms,
        (2, 8, 20, 40),
        SEEDS[budget],
        "bits",
        "test_bits",
        decays=("none", "cosine"),
        search=searches[budget],
        against=40,
        data="characters",
        quoted=QUOTED["ptb"],
    )


# One change at a time from plain DNI.
ABLATION = (
    BPTT,
    DNI,
    Arm("two-layers", "estimator of two hidden layers", dict(estimator_hidden=(128, 128))),
    Arm("dense", "dense targets", dict(dense=True)),
    Arm("input", "with the next input", dict(context=("input",))),
    Arm("target", "with the next target", dict(context=("target",))),
    Arm("normalised", "normalised targets", dict(normalise=True)),
    Arm("no-terminal", "no target at a sequence's end", dict(no_terminal_target=True)),
    Arm("discount-0", "discount 0", dict(discount=0.0)),
    Arm("discount-0.9", "discount 0.9", dict(discount=0.9)),
    Arm("scale-1", "scale 1", dict(scale=1.0)),
    Arm("both-0.1", "scale and discount 0.1", dict(scale=0.1, discount=0.1)),
    Arm("both-1", "scale and discount 1", dict(scale=1.0, discount=1.0)),
    Arm("warm-up", "warm-up of 500 updates, ramp of 500", dict(warm_up=500, ramp=500)),
    Arm("chunk", "a chunk an update", {}, chunks=1),
    Arm("lambda", "lambda 0.8", dict(trace_decay=0.8)),
    AUX._replace(label="auxiliary task"),
    Arm("least-squares", "least squares, scale 1", SOLVED),
    Arm("least-squares-half", "least squares, scale 0.5", {**SOLVED, "scale": 0.5}),
    ours("copy")._replace(label="least squares, lambda 0.8"),
    Arm("ours-undiscounted", "the same, discount 1", {**LAMBDA, "discount": 1.0}),
    Arm("ours-far", "the same, lambda 0.95", {**LAMBDA, "discount": 1.0, "trace_decay": 0.95}),
    Arm("true", "the true gradient", dict(estimator="true", scale=1.0, discount=1.0)),
)


def ablation(budget: str) -> Recipe:
    copy = RECIPES["copy"](budget)
    return dataclasses.replace(
        copy, title="Ablation on Copy", arms=ABLATION, truncations=(4,), quoted={}
    )


RECIPES: dict[str, Callable[[str], Recipe]] = {
    "copy": bit_sequences("copy", "Copy", "solved", max_length=64),
    "copy-8": bit_sequences("copy", "Copy of 8 bits", "solved", EIGHT_BITS, max_length=64),
    # In steps, which the paper's figures seem to be: tasks/repeat_copy.py.
    "repeat-copy": bit_sequences("repeat-copy", "Repeat Copy", "solved_steps"),
    "ptb": penn_treebank,
    "ablation": ablation,
}
SUMMARIES = {
    "copy": "the longest sequence that is copied, by truncation",
    "copy-8": "the same at the paper's size: vectors of 8 bits, 256 units, 20 minutes a run",
    "repeat-copy": "the same of Repeat Copy, in steps, and in length times repeats",
    "ptb": "bits per character on Penn Treebank, each arm at a learning rate of its own",
    "ablation": "what each part of our additions gives on Copy, one change at a time",
}


class Column(NamedTuple):
    """What has one cell in a table: an arm at a truncation, with one decay of its rate."""

    arm: Arm
    truncation: int
    decay: str

    @property
    def name(self) -> str:
        decay = "" if self.decay == "none" else f"-{self.decay}"
        return f"{self.arm.name}-T{self.truncation}{decay}"


def columns(recipe: Recipe) -> list[Column]:
    return [
        Column(arm, truncation, decay)
        for decay in recipe.decays
        for truncation in recipe.truncations
        for arm in recipe.arms
        if truncation in (arm.truncations or recipe.truncations)
    ]


def options_of(recipe: Recipe, column: Column, **changes: Any) -> Any:
    """The options of a run of a column."""
    options, arm = recipe.options, column.arm
    return options.but(
        **{
            **arm.changes,
            "truncation": column.truncation,
            "update_steps": (
                arm.chunks * column.truncation
                if arm.chunks
                else arm.changes.get("update_steps", options.update_steps)
            ),
            "decay": arm.changes.get("decay", column.decay),
            # A rate that falls has its best model at the end.
            "patience": options.patience if column.decay == "none" else None,
            "quiet": True,
            **changes,
        },
    )


def narrowed(recipe: Recipe, **wanted: Sequence[Any] | None) -> Recipe:
    """The recipe with only some of its ``arms`` (names), ``truncations`` or ``decays``.

    Raises ValueError for one that the recipe has not.
    """
    kept = {}
    for field, names in wanted.items():
        if names is None:
            continue
        there = {getattr(one, "name", one): one for one in getattr(recipe, field)}
        for name in names:
            if name not in there:
                known = ", ".join(map(str, there))
                raise ValueError(f"--{field} must be of {known}; got {name}")
        kept[field] = tuple(one for name, one in there.items() if name in names)
    recipe = dataclasses.replace(recipe, **kept)
    if not columns(recipe):
        raise ValueError("--arms and --truncations have nothing in common here")
    return recipe
