"""reproduce distill and reproduce codistill: what a teacher, or a worker beside one, is worth."""

from collections.abc import Sequence
from statistics import median

from dnirnn.config.registry import TASKS
from dnirnn.reports.recipes import Arm, Recipe
from dnirnn.reports.runs import Run
from dnirnn.reports.tables import Trace, by_column, values_of
from dnirnn.training.loading import load_weights
from dnirnn.training.run_folder import read_config

SUMMARIES = {
    "distill": "a network of a quarter of the parameters, alone and taught by a large one, or by three",
    "codistill": "two workers that teach each other, beside one worker of twice the batch, and others",
}
ALONE = Arm("alone", "alone", {})
TAUGHT = dict(teacher_weight=0.5, temperature=2.0)
SMOOTHED = Arm("smoothing", "label smoothing, 0.1", dict(smoothing=0.1))
# hidden, of the student and of a teacher with four times its parameters (at --embedding 64); minutes.
SIZES = {"quick": (64, 144, 0.25, 0.5), "cpu": (240, 512, 4.0, 8.0), "gpu": (700, 1450, 30.0, 60.0)}
SEEDS = {"quick": (0,), "cpu": (0, 1, 2), "gpu": (0, 1, 2)}
BATCH = {"quick": 16, "cpu": 32, "gpu": 128}
TEST = "test_bits"
ANIL = (
    "*quoted*: Anil et al. 2018 (arXiv 1804.03235) have two groups of workers that teach each other reach the"
    " same error in about half the updates, where more workers for one model no longer help; from"
    " memory, not checked against the paper. Their networks, batches and hardware are not ours."
)


def distill(budget: str) -> Recipe:
    small, large, student_minutes, teacher_minutes = SIZES[budget]
    arms = (
        Arm("teacher", "its teacher", dict(hidden=large, minutes=teacher_minutes)),
        ALONE,
        Arm("distilled", "taught by one", TAUGHT, taught_by="teacher"),
        Arm("ensemble", "taught by one of each seed", TAUGHT, taught_by="teacher", every_seed=True),
        SMOOTHED,
    )
    return Recipe(
        "Distillation on Penn Treebank characters",
        "char-lm",
        characters(budget, small, student_minutes),
        arms,
        (40,),
        SEEDS[budget],
        "bits",
        TEST,
        decays=("cosine",),
        data="characters",
        baseline=ALONE,
        remarks=share_of_the_gap,
    )


def codistill(budget: str) -> Recipe:
    small, _, minutes, _ = SIZES[budget]
    batch = BATCH[budget]
    burn_in = {"quick": 20, "cpu": 500, "gpu": 2000}[budget]
    exchanged = dict(codistill=True, exchange_every=burn_in // 2, burn_in=burn_in, **TAUGHT)
    arms = (
        Arm("double", "one worker of twice the batch", dict(batch=2 * batch)),
        Arm("codistilled", "two that teach each other", exchanged, processes=2),
        Arm("parallel", "two, data parallel", dict(batch=2 * batch), processes=2),
        ALONE._replace(label="one worker"),
        SMOOTHED._replace(label="one worker, label smoothing, 0.1"),
    )
    return Recipe(
        "Codistillation on Penn Treebank characters",
        "char-lm",
        characters(budget, small, minutes),
        arms,
        (40,),
        SEEDS[budget],
        "bits",
        TEST,
        data="characters",
        baseline=arms[0],
        remarks=beside_an_ensemble,
    )


def characters(budget: str, hidden: int, minutes: float):
    options = TASKS["char-lm"].Options
    every = {"quick": 50_000, "cpu": 500_000, "gpu": 5_000_000}[budget]
    return options(
        estimator="none", corpus="ptb", hidden=hidden, minutes=minutes, batch=BATCH[budget], lr=2e-3,
        evaluate_every=every, device="cuda" if budget == "gpu" else "cpu",
    )  # fmt: skip


def share_of_the_gap(recipe: Recipe, traces: Sequence[Trace]) -> list[str]:
    """How much nearer to its teacher each is than the same network alone: (a - b) / (a - teacher)."""
    known = {column.arm.name: median(found) for column, seeds in by_column(traces)
             if (found := values_of(seeds, TEST))}  # fmt: skip
    if not {"teacher", "alone"} <= known.keys() or known["alone"] == known["teacher"]:
        return []
    gap = known["alone"] - known["teacher"]
    lines = [
        f"The network alone comes to {known['alone']:.4f} test bits, its teacher to"
        f" {known['teacher']:.4f}. Of these {gap:.4f}, medians over seeds, is closed by"
    ]
    lines += [
        f"- {arm.label}: {(known['alone'] - known[arm.name]) / gap:.0%} ({known[arm.name]:.4f})"
        for arm in recipe.arms if arm.name in known and arm.name not in ("alone", "teacher")
    ]  # fmt: skip
    return [lines[0], "", *lines[1:], ""]


def beside_an_ensemble(recipe: Recipe, traces: Sequence[Trace]) -> list[str]:
    """What the mean prediction of two runs of one worker comes to: twice the cost, when it is used too."""
    alone = [trace.run for trace in traces if trace.column.arm.name == "alone" and trace.result]
    lines = [ANIL, ""]
    if len(alone) > 1:
        lines += [f"The mean prediction of two runs of one worker: {ensemble(alone[:2])}.", ""]
    return lines


def ensemble(runs: Sequence[Run]) -> str:
    """The figure of the runs' mean prediction, in the words of ``dnirnn eval RUN --others``."""
    first, *others = [run.place for run in runs]
    config = read_config(first)
    model = TASKS[config["task"]].restore(config)[0]
    load_weights(first, model, "best")
    given = {**config, "others": [str(other) for other in others]}
    return TASKS[config["task"]].evaluate(given, model, "test")[0]


RECIPES = {"distill": distill, "codistill": codistill}
