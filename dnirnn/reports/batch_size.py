"""reproduce batch-size: what a batch size costs and gives."""

from collections.abc import Sequence
from statistics import median

from dnirnn.config.registry import TASKS
from dnirnn.reports.recipes import Arm, Recipe, Search
from dnirnn.reports.tables import Trace, by_column
from dnirnn.training.log import read_log
from dnirnn.training.trainer import LOG

SUMMARIES = {
    "batch-size": "bits at batch 4 to 512, each at a learning rate of its own, against characters and seconds"
}
SIZES = (4, 8, 32, 128, 512)
LARGEST = f"batch-{SIZES[-1]}"
BASELINE = Arm("batch-32", "batch 32", dict(batch=32))
SEEDS = {"quick": (0,), "cpu": (0, 1, 2), "gpu": (0, 1, 2)}
MINUTES = {"quick": 0.2, "cpu": 2.0, "gpu": 10.0}  # training, of a run
HIDDEN = {"quick": 32, "cpu": 256, "gpu": 1024}
SEARCHES = {
    "quick": Search((2e-3, 4e-3), 0.05),
    "cpu": Search((1e-3, 2e-3, 4e-3), 0.5),
    "gpu": Search((1e-3, 2e-3, 4e-3), 2.0),
}


def batch_size(budget: str) -> Recipe:
    sizes = [Arm(f"batch-{size}", f"batch {size}", dict(batch=size)) for size in SIZES]
    pieces = Arm(
        f"{LARGEST}-in-4", f"batch {SIZES[-1]}, computed 128 rows at once",
        dict(batch=SIZES[-1], micro_batch=128), rate_of=LARGEST,
    )  # fmt: skip
    every = {"quick": 50_000, "cpu": 250_000, "gpu": 5_000_000}[budget]
    options = TASKS["char-lm"].Options(
        estimator="none", corpus="ptb", hidden=HIDDEN[budget], minutes=MINUTES[budget], batch=32,
        evaluate_every=every, log_every=every // 5, device="cuda" if budget == "gpu" else "cpu",
    )  # fmt: skip
    return Recipe(
        "Batch size on Penn Treebank characters",
        "char-lm",
        options,
        (*sizes, pieces),
        (40,),
        SEEDS[budget],
        "bits",
        "test_bits",
        search=SEARCHES[budget],
        data="characters",
        baseline=BASELINE,
        remarks=at_equal_training_loss,
    )


def at_equal_training_loss(recipe: Recipe, traces: Sequence[Trace]) -> list[str]:
    """Validation bits where training bits first come to what every run comes to: who generalises better."""
    curves = {column.name: [generalisation(seed) for seed in seeds] for column, seeds in by_column(traces)}
    reached = [min(train for train, _ in one) for seeds in curves.values() for one in seeds if one]
    if not reached:
        return []
    mark = max(reached)
    rows = [f"| {column.arm.label} | {found} |" for column, seeds in by_column(traces)
            if (found := at(curves[column.name], mark))]  # fmt: skip
    return [
        f"Validation bits where training first came to {mark:.4f} bits, which every run reached:", "",
        "| | validation bits |", "| --- | --- |", *rows, "",
    ]  # fmt: skip


def generalisation(trace: Trace) -> list[tuple[float, float]]:
    """(training bits since the evaluation before, validation bits) at each evaluation of a run."""
    found, since = [], []
    for row in read_log(trace.run.place / LOG):
        if row["kind"] == "train":
            since.append(row["bits"])
        elif row["kind"] == "valid" and since:
            found.append((sum(since) / len(since), row["bits"]))
            since = []
    return found


def at(seeds: Sequence[list[tuple[float, float]]], mark: float) -> str:
    values = [next((valid for train, valid in one if train <= mark), None) for one in seeds]
    values = [value for value in values if value is not None]
    if not values:
        return ""
    text = f"{median(values):.4f}"
    return text if len(values) == 1 else f"{text} ({min(values):.4f} to {max(values):.4f})"


RECIPES = {"batch-size": batch_size}
