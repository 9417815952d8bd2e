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
    "distill": "a network of a quarter of the parameters, alone and taught by a large one, on all of the text; on a"
    " twentieth of it also taught by three, and with label smoothing",
    "codistill": "two workers that teach each other, beside one worker of twice the batch, and others",
}
ALONE = Arm("alone", "alone", {})
TAUGHT = dict(teacher_weight=0.5, temperature=1.0)
SMOOTHED = Arm("smoothing", "label smoothing, 0.1", dict(smoothing=0.1))
# What a twentieth of the text leaves out, a teacher that has read all of it still predicts.
TWENTIETH = dict(train_share=0.05)
ALONE_ON_A_TWENTIETH = Arm("twentieth", "alone on a twentieth of the text", TWENTIETH)
TAUGHT_ON_A_TWENTIETH = dict(TWENTIETH, teacher_weight=0.9, temperature=1.0)
STUDENT = {
    "quick": dict(hidden=64, minutes=0.25, lr=2e-3),
    "cpu": dict(hidden=110, minutes=3.0, lr=1e-2),
    "gpu": dict(hidden=700, minutes=30.0, lr=2e-3),
}
# Of four times its parameters, at --embedding 64.
TEACHER = {
    "quick": dict(hidden=160, lr=2e-3),
    "cpu": dict(hidden=256, lr=4e-3),
    "gpu": dict(hidden=1450, lr=2e-3),
}
# The rate is the one that the search of reproduce batch-size found for 256 units in two minutes, on a thread.
WORKER = {
    "quick": dict(hidden=64, minutes=0.25, lr=2e-3),
    "cpu": dict(hidden=240, minutes=1.0, lr=8e-3),
    "gpu": dict(hidden=700, minutes=30.0, lr=2e-3),
}
SEEDS = {"quick": (0,), "cpu": (0, 1, 2), "gpu": (0, 1, 2)}
BATCH = {"quick": 16, "cpu": 32, "gpu": 128}
TEST = "test_bits"
ANIL = (
    "*quoted*: Anil et al. 2018 (arXiv 1804.03235) have two groups of workers that teach each other reach the"
    " same error in about half the updates, where more workers for one model no longer help; from"
    " memory, not checked against the paper. Their networks, batches and hardware are not ours."
)


def distill(budget: str) -> Recipe:
    on_a_twentieth = "on a twentieth of the text"
    arms = (
        Arm("teacher", "its teacher", TEACHER[budget]),
        ALONE,
        Arm("distilled", "taught by one", TAUGHT, taught_by="teacher"),
        ALONE_ON_A_TWENTIETH,
        Arm("twentieth-distilled", f"taught by one, {on_a_twentieth}", TAUGHT_ON_A_TWENTIETH, taught_by="teacher"),
        Arm(
            "twentieth-ensemble", f"taught by one of each seed, {on_a_twentieth}", TAUGHT_ON_A_TWENTIETH,
            taught_by="teacher", every_seed=True,
        ),
        Arm("twentieth-smoothing", f"{SMOOTHED.label}, {on_a_twentieth}", TWENTIETH | SMOOTHED.changes),
    )  # fmt: skip
    return Recipe(
        "Distillation on Penn Treebank characters",
        "char-lm",
        characters(budget, STUDENT[budget]),
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
    batch = BATCH[budget]
    burn_in = {"quick": 20, "cpu": 300, "gpu": 2000}[budget]
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
        characters(budget, WORKER[budget]),
        arms,
        (40,),
        SEEDS[budget],
        "bits",
        TEST,
        data="characters",
        baseline=arms[0],
        remarks=beside_an_ensemble,
    )


def characters(budget: str, sized: dict):
    every = {"quick": 50_000, "cpu": 500_000, "gpu": 5_000_000}[budget]
    device = "cuda" if budget == "gpu" else "cpu"
    return TASKS["char-lm"].Options(
        estimator="none", corpus="ptb", batch=BATCH[budget], evaluate_every=every, device=device, **sized
    )


def share_of_the_gap(recipe: Recipe, traces: Sequence[Trace]) -> list[str]:
    """How much nearer to its teacher each is than the same network alone, on as much of the text:
    (a - b) / (a - teacher)."""
    known = {column.arm.name: median(found) for column, seeds in by_column(traces)
             if (found := values_of(seeds, TEST))}  # fmt: skip
    lines = []
    for alone in (ALONE, ALONE_ON_A_TWENTIETH):
        if not {"teacher", alone.name} <= known.keys() or known[alone.name] == known["teacher"]:
            continue
        gap = known[alone.name] - known["teacher"]
        lines += [
            f"The network {alone.label} comes to {known[alone.name]:.4f} test bits, its teacher to"
            f" {known['teacher']:.4f} (medians over seeds). Of the gap of {gap:.4f} this is closed:", "",
        ]  # fmt: skip
        beside = [arm for arm in recipe.arms if arm.name in known
                  and arm.name not in ("alone", "teacher", "twentieth")
                  and ("train_share" in arm.changes) == ("train_share" in alone.changes)]  # fmt: skip
        lines += [
            f"- {arm.label}: {(known[alone.name] - known[arm.name]) / gap:.0%} ({known[arm.name]:.4f})"
            for arm in beside
        ]
        lines.append("")
    return lines


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
