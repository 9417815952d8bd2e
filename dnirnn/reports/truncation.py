"""reproduce truncation: text at one truncation after another, and what stands in for the future at each.

Beside every gain over truncated backpropagation stands that of the true gradient, which no estimator
can pass but by luck, and the share of it that an arm takes; and two controls, which inject what is
no prediction of a row.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

from dnirnn.config.registry import TASKS
from dnirnn.reports.recipes import BPTT, SEEDS, Arm, Recipe
from dnirnn.reports.tables import Trace, read_along

SUMMARIES = {
    "truncation": "text at T = 2 to 40: estimators, their controls, open cuts, overlaps, and the ceiling"
}
TRUNCATIONS = (2, 3, 5, 8, 20, 40)
SHORT = (2, 3, 5, 8)  # where there is something to win
LINEAR: dict[str, Any] = dict(estimator_hidden=("linear",))
READER: dict[str, Any] = dict(**LINEAR, context=("input", "target"), reads=4, reader=64)
AUTO: dict[str, Any] = dict(scale="auto", discount=0.0)
TRUE = Arm("true", "the true gradient", dict(estimator="true", lookahead=8))
ARMS = (
    TRUE,
    Arm("state", "DNI (state)", LINEAR),
    Arm("state-auto", "DNI (state), automatic scale", {**LINEAR, **AUTO}),
    Arm("reader", "DNI (reader), scale 0.5", {**READER, "scale": 0.5, "discount": 0.0}),
    Arm("reader-auto", "DNI (reader), automatic scale", {**READER, **AUTO}),
    Arm("another-row", "its control, another row's", {**READER, **AUTO, "control": "another-row"}),
    Arm("noise", "its control, noise", {**READER, **AUTO, "control": "noise"}),
    Arm("open-cuts", "open cuts (ARTBP)", dict(estimator="none", open_cuts=0.5)),
    Arm(
        "control-variate", "open cuts, DNI (reader) as control variate",
        {**READER, "scale": 1.0, "discount": 0.0, "open_cuts": 0.5},
    ),
    Arm("overlap-2", "2 steps further back", dict(estimator="none", overlap=2)),
    Arm("overlap-4", "4 steps further back", dict(estimator="none", overlap=4)),
)  # fmt: skip
# What every run gets, by budget: one low rate, without decay, so that runs compare at any point.
OPTIONS: dict[str, dict[str, Any]] = {
    "quick": dict(hidden=64, batch=32, lr=1e-3, symbols=40_000, evaluate_every=20_000),
    "cpu": dict(hidden=256, batch=32, lr=1e-3, symbols=1_000_000, evaluate_every=250_000),
    "gpu": dict(
        hidden=1024, batch=32, lr=5e-4, symbols=40_000_000, evaluate_every=1_000_000, device="cuda"
    ),
}


def truncation(budget: str) -> Recipe:
    options = TASKS["char-lm"].Options(
        estimator="dni", corpus="ptb", estimator_lr=3e-5, **OPTIONS[budget]
    )
    return Recipe(
        "Truncation on Penn Treebank characters",
        "char-lm",
        options,
        (BPTT, *(arm._replace(truncations=SHORT) for arm in ARMS)),
        TRUNCATIONS,
        SEEDS[budget],
        "bits",
        "test_bits",
        data="characters",
        remarks=shares,
    )


def shares(recipe: Recipe, traces: Sequence[Trace]) -> list[str]:
    """What each arm gains over BPTT of its seed, how often it loses, and its share of the ceiling."""
    lines = []
    for axis, word in (("data", recipe.data), ("updates", "updates"), ("seconds", "seconds")):
        cells = {cell.column.name: cell for cell in read_along(recipe, traces, axis, True)}
        rows = []
        across = [t for t in recipe.truncations if f"{BPTT.name}-T{t}" in cells and t in SHORT]
        for arm in recipe.arms:
            gains = [gains_of(cells, arm, t) for t in across]
            if arm != BPTT and any(gains):
                ceilings = [gains_of(cells, TRUE, t) if axis != "seconds" else [] for t in across]
                entries = [gain(own, top, arm.name == TRUE.name) for own, top in zip(gains, ceilings)]
                rows.append(f"| {arm.label} | {' | '.join(entries)} |")
        if rows:
            lines += [
                f"## Bits gained over BPTT of the same truncation and seed, after equal {word}", "",
                f"| | {' | '.join(f'T = {t}' for t in across)} |",
                "| --- |" + " --- |" * len(across), *rows, "",
            ]  # fmt: skip
    if lines:
        lines += [
            "Medians over the seeds, lowest to highest in brackets, seeds that lost; then the share of what"
            " the true gradient of the next 8 steps gains. At equal seconds looking ahead costs that arm its"
            " time, and there is no ceiling.",
            "",
        ]
    return lines


def gains_of(cells: dict, arm: Arm, truncation: int) -> list[float]:
    """Of each seed; nothing where a seed of one of them is missing."""
    own, plain = (cells.get(f"{one.name}-T{truncation}") for one in (arm, BPTT))
    if own is None or plain is None or len(own.values) != len(plain.values):
        return []
    return [before - after for before, after in zip(plain.values, own.values)]


def gain(own: Sequence[float], ceiling: Sequence[float], is_ceiling: bool) -> str:
    if not own:
        return ""
    text = f"{median(own):+.4f}"
    if len(own) > 1:
        text += f" ({min(own):+.4f} to {max(own):+.4f}), {sum(one < 0 for one in own)} lost"
    if is_ceiling or not ceiling or median(ceiling) <= 0:
        return text
    return f"{text}: {median(own) / median(ceiling):.0%} of {median(ceiling):.4f}"


RECIPES = {"truncation": truncation}
