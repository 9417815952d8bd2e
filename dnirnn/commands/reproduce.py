"""reproduce: a table of the paper made again, ours beside theirs."""

import math
from collections.abc import Sequence
from pathlib import Path

from dnirnn.reports.recipes import Column, Recipe, columns, options_of
from dnirnn.reports.report import Planned, Rates, report
from dnirnn.reports.runs import Failure, Run, checked, run_missing

SEARCH_SEED = 1000  # none that a table has
FARTHEST = 1e-7, 1.0  # learning rates that a search does not go beyond


def reproduce(recipe: Recipe, folder: Path, jobs: int, command: str) -> list[Failure]:
    """Does what is not done of a recipe, ``jobs`` runs at once, and writes the report.

    The folder gets a folder for each run, search/ with those of the search for learning rates, and
    what report writes; interrupted, too, on what is done by then. Returns the runs that failed.

    command: what the report says that it was made by.

    Raises ValueError, before anything is run, where a run's folder holds another configuration.
    """
    planned = columns(recipe)
    rates = Rates({}, {})
    if recipe.search is not None:
        rates = search(recipe, planned, folder / "search", jobs)
    runs = [
        Planned(column, planned_run(recipe, column, seed, folder, rates))
        for seed in recipe.seeds
        for column in planned
    ]
    notice = checked(recipe.task, [run for _, run in runs])
    print(notice)
    failures: list[Failure] = []
    try:
        failures += run_missing(recipe.task, [run for _, run in runs], folder, jobs, False)
    finally:
        report(recipe, runs, rates, failures, folder, notice, command)
    return failures


def planned_run(recipe: Recipe, column: Column, seed: int, folder: Path, rates: Rates) -> Run:
    found = {"lr": rates.found[column.name]} if column.name in rates.found else {}
    name = f"{column.name}-seed{seed}"
    return Run(name, options_of(recipe, column, seed=seed, **found), folder / name)


def search(recipe: Recipe, planned: Sequence[Column], folder: Path, jobs: int) -> Rates:
    """Each column's best learning rate, by the best validation bits of short runs.

    A run that fails counts as infinitely bad. Raises ValueError where all of a column's fail.
    """
    tried: dict[str, dict[float, float]] = {column.name: {} for column in planned}
    while True:
        asked = [
            (column.name, rate, search_run(recipe, column, rate, folder))
            for column in planned
            for rate in untried(tried[column.name], recipe.search.rates)
        ]
        if not asked:
            break
        runs = [run for _, _, run in asked]
        checked(recipe.task, runs)
        reasons = {}
        for failure in run_missing(recipe.task, runs, folder, jobs, False):
            print(f"{failure.run} counts as infinitely bad: {failure.reason}")
            reasons[failure.run] = failure.reason
        for name, rate, run in asked:
            result = run.result()
            tried[name][rate] = math.inf if result is None else result["best"]["bits"]
        for name, _, run in asked:
            if min(tried[name].values()) == math.inf:
                raise ValueError(
                    f"no learning rate that was tried trains {name}: {reasons.get(run.name)}"
                )
    return Rates({name: min(bits, key=bits.__getitem__) for name, bits in tried.items()}, tried)


def search_run(recipe: Recipe, column: Column, rate: float, folder: Path) -> Run:
    limits = dict(minutes=recipe.search.minutes, updates=None, symbols=None, patience=None)
    options = options_of(recipe, column, seed=SEARCH_SEED, lr=rate, **limits)
    name = f"{column.name}-lr{rate:g}"
    return Run(name, options, folder / name)


def untried(tried: dict[float, float], first: Sequence[float]) -> list[float]:
    """The learning rates to try next: ``first``, then, while the best is at an edge, beyond it.

    tried: validation bits by learning rate.
    """
    missing = [rate for rate in first if rate not in tried]
    if missing or len(first) < 2:
        return missing
    rates, ratio = sorted(tried), first[1] / first[0]
    best = min(rates, key=tried.__getitem__)
    beyond = {rates[0]: best / ratio, rates[-1]: best * ratio}.get(best)
    if beyond is None or not FARTHEST[0] <= beyond <= FARTHEST[1]:
        return []
    return [float(f"{beyond:.3g}")]
