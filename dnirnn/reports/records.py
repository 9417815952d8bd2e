"""reproduce record and reproduce parts: the best character model for the time, and what each part of it gives.

The recipes are the files of ``--recipe`` (see dnirnn.config.recipes); the tables make their figures.
"""

from collections.abc import Sequence
from typing import Any

from dnirnn.config import recipes as files
from dnirnn.config.registry import TASKS
from dnirnn.reports.recipes import Arm, Recipe
from dnirnn.reports.runs import Run, write_whole
from dnirnn.reports.tables import Trace
from dnirnn.training.loading import load_weights
from dnirnn.training.run_folder import read_config

SUMMARIES = {
    "record": "the recipes of char-lm, and the same on torch.nn.LSTM, in the same minutes",
    "parts": "a recipe without each of its parts in turn, and DNI, a longer window and stacks in its place",
}
NAMES = {"quick": ("cpu-5",), "cpu": ("cpu-5", "cpu-15", "cpu-60"), "gpu": ("gpu-5", "gpu-15")}
SEEDS = {"quick": (0,), "cpu": (0, 1, 2), "gpu": (0, 1, 2)}
# What makes a smoke run of a recipe.
QUICK: dict[str, Any] = dict(minutes=0.1, hidden=64, evaluate_every=50_000)
TORCH: dict[str, Any] = dict(core="torch-lstm", dtype="float32")
SYMBOLS = 50  # of Penn Treebank
WITHOUT: dict[str, tuple[str, dict[str, Any]]] = {
    "no-average": ("weights of the last update", dict(average=None)),
    "no-warm-up": ("no warm-up of the rate", dict(lr_warm_up=0)),
    "constant": ("a constant rate", dict(decay="none")),
    "unclipped": ("no clipping", dict(clip=0.0)),
    "float32": ("float32", dict(dtype="float32")),
}
INSTEAD: dict[str, tuple[str, dict[str, Any]]] = {
    "window-8": ("8 steps, plain", dict(truncation=8)),
    "dni-8": ("8 steps, synthetic gradients", dict(truncation=8, estimator="dni")),
    "window-200": ("200 steps", dict(truncation=200)),
    "two-layers": ("two layers", dict(layers=2)),
    "norm": ("layer norm", dict(core="norm-lstm")),
    "clockwork": ("clockwork LSTM", dict(core="clockwork-lstm")),
    "dilated": ("dilated", dict(core="dilated")),
    "fast-slow": ("fast-slow", dict(core="fast-slow")),
    "hm-lstm": ("HM-LSTM", dict(core="hm-lstm")),
}


def record(budget: str) -> Recipe:
    """An arm a recipe, and one on torch.nn.LSTM, each for the recipe's time."""
    arms = []
    for name in NAMES[budget]:
        values, note = values_of(name, budget)
        arms += [arm(name, note, values), arm(f"{name}-torch", f"{note}, torch.nn.LSTM", {**values, **TORCH})]
    return table("The best character model for the time", budget, arms)


def parts(budget: str) -> Recipe:
    """The shortest recipe, a change at a time; another network has as many parameters."""
    name = NAMES[budget][0]
    values, note = values_of(name, budget)
    arms = [arm(name, note, values)]
    for key, (label, changes) in {**WITHOUT, **INSTEAD}.items():
        of_another = changes.keys() & {"core", "layers"}
        size = dict(parameters=parameters_of(values), hidden=None) if of_another else {}
        made = {**values, **changes, **size}
        if made != values:
            arms.append(arm(key, label, made))
    return table("What each part of a recipe gives", budget, arms)


def arm(name: str, label: str, values: dict[str, Any]) -> Arm:
    """values: None stands for the option's default."""
    values = {name: value for name, value in values.items() if value is not None}
    return Arm(name, label, values, truncations=(values.pop("truncation"),))


def table(title: str, budget: str, arms: Sequence[Arm]) -> Recipe:
    device = "cuda" if budget == "gpu" else "cpu"
    options = TASKS["char-lm"].Options(estimator="none", corpus="ptb", device=device)
    lengths = tuple(sorted({length for one in arms for length in one.truncations}))
    return Recipe(
        title,
        "char-lm",
        options,
        tuple(arms),
        lengths,
        SEEDS[budget],
        "bits",
        "test_bits",
        decays=("cosine",),
        data="characters",
        against=arms[0].truncations[0],
        baseline=arms[0],
        remarks=with_dynamic_evaluation,
    )


def values_of(name: str, budget: str) -> tuple[dict[str, Any], str]:
    """(the options of a recipe, what it is for)."""
    values, lines = files.read("char-lm", name)
    values = {**values, **(QUICK if budget == "quick" else {})}
    return values, lines[0].split(": ")[1].split(";")[0]


def parameters_of(values: dict[str, Any]) -> int:
    """Of an LSTM of one layer between its embedding and its readout."""
    hidden, embedding = values["hidden"], values["embedding"]
    return 4 * hidden * (embedding + hidden + 2) + (hidden + 1 + embedding) * SYMBOLS


def with_dynamic_evaluation(recipe: Recipe, traces: Sequence[Trace]) -> list[str]:
    """Test bits of the recipes' own runs while the weights go on moving (Krause et al. 2018)."""
    names = {name for budget in NAMES.values() for name in budget}
    own = [trace.run for trace in traces if trace.column.arm.name in names and trace.result]
    return ["Dynamic evaluation, apart from the table:", "",
            *(f"- {run.name}: {dynamic(run)}" for run in own), ""] if own else []  # fmt: skip


def dynamic(run: Run) -> str:
    """The figures of ``dnirnn eval RUN --dynamic``; kept beside the run, since they take minutes."""
    kept = run.folder / "dynamic.txt"
    if not kept.exists():
        config = read_config(run.folder)
        task = TASKS[config["task"]]
        model = task.restore(config)[0]
        load_weights(run.folder, model, "best")
        asked = {**config, "dynamic": True, "dynamic_steps": 20}
        line = next(one for one in task.evaluate(asked, model, "test") if "dynamic" in one)
        write_whole(kept, lambda file: file.write(line + "\n"))
    return kept.read_text().strip()


RECIPES = {"record": record, "parts": parts}
