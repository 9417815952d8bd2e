"""reproduce: a table of the paper made again, ours beside theirs."""

import argparse
import dataclasses
import math
import shlex
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnirnn.commands.shared import add_jobs, finish, jobs_and_threads, sentence
from dnirnn.options import flag
from dnirnn.reports import (
    batch_size,
    contests,
    feed_forward,
    recipes,
    records,
    teachers,
    timescales,
    truncation,
)
from dnirnn.reports.recipes import Column, Recipe, columns, options_of
from dnirnn.reports.report import Planned, Rates, report
from dnirnn.reports.runs import Failure, Run, checked, run_missing

SEARCH_SEED = 1000  # none that a table has
MAKERS = recipes, truncation, teachers, batch_size, records
RECIPES = ChainMap(*(module.RECIPES for module in MAKERS))
SUMMARIES = ChainMap(*(module.SUMMARIES for module in MAKERS))
FARTHEST = 1e-7, 1.0  # learning rates that a search does not go beyond


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    tables = parent.add_subparsers(title="tables", metavar="TABLE", dest="table", required=True)
    for name, make in RECIPES.items():
        recipe, summary = make(recipes.BUDGETS[0]), SUMMARIES[name]
        table = tables.add_parser(name, help=summary, description=sentence(summary))
        table.set_defaults(make=run_recipe)
        add_budget(
            table,
            recipes.BUDGETS,
            "the recipe: quick, a smoke run of minutes; cpu, for two cores, up to three hours;"
            " gpu, the paper's sizes",
        )
        arms = ", ".join(f"{arm.name} ({arm.label})" for arm in recipe.arms)
        narrow(table, "arms", f"only these ways of training, of {arms}", "ARM", str)
        known = ", ".join(map(str, recipe.truncations))
        narrow(table, "truncations", f"only these, of {known}", "STEPS", int)
        if len(recipe.decays) > 1:
            known = ", ".join(recipe.decays)
            narrow(table, "decays", f"only these of the learning rate, of {known}", "DECAY", str)
        add_seeds(table, "a run of every arm and truncation for each ", "the budget's, 0 or 0 1 2")
        add_minutes(table, " limit; searches for learning rates keep theirs")
        data = "where ptb.train.txt, ptb.valid.txt and ptb.test.txt are"
        data = data if hasattr(recipe.options, "data_dir") else None
        add_places(table, data, "cuda with --budget gpu, else cpu")
    for name, summary in feed_forward.SUMMARIES.items():
        table = tables.add_parser(name, help=summary, description=sentence(summary))
        table.set_defaults(make=run_feed_forward)
        add_feed_forward(table)
    for name, summary in timescales.SUMMARIES.items():
        table = tables.add_parser(name, help=summary, description=sentence(summary))
        table.set_defaults(make=run_timescales)
        add_timescales(table)


def add_feed_forward(table: argparse.ArgumentParser) -> None:
    text = "quick, a smoke run on scikit-learn's digits; cpu, for two cores, hours"
    add_budget(table, feed_forward.BUDGETS, text)
    narrow_names(table, "such as mnist-fcn3, -cdni, random")
    add_seeds(table, "", "0 1 2; 0 in quick")
    table.add_argument(
        "--epochs",
        type=float,
        metavar="EPOCHS",
        help="of every run, in place of the budget's own number; in random order with probability p it is"
        " 1 / p times as many",
    )
    add_places(table, "with the folders mnist and cifar10 in it", "cpu")


def add_timescales(table: argparse.ArgumentParser) -> None:
    text = "quick, a smoke run; cpu, for two cores, two hours; gpu, larger"
    add_budget(table, contests.BUDGETS, text)
    names = f"a task, {', '.join(contests.CONTESTS)}, or a network, such as skip-0.001"
    narrow_names(table, names)
    add_seeds(table, "", "0 1 2; 0 in quick")
    add_minutes(table, "")
    add_places(table, "with the folders mnist and ptb in it", "cuda with --budget gpu, else cpu")


def add_budget(table: argparse.ArgumentParser, budgets: Sequence[str], text: str) -> None:
    table.add_argument("--budget", choices=budgets, default="cpu", help=f"{text} (default: cpu)")


def add_seeds(table: argparse.ArgumentParser, text: str, default: str) -> None:
    table.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help=f"{text}(default: {default})"
    )


def add_minutes(table: argparse.ArgumentParser, rest: str) -> None:
    text = f"training time of every run, in place of the budget's own{rest}"
    table.add_argument("--minutes", type=float, metavar="MINUTES", help=text)


def add_places(table: argparse.ArgumentParser, data: str | None, device: str) -> None:
    """Where data is, if the table is made of any, where to compute, where the runs go, how many at once."""
    if data is not None:
        table.add_argument(
            "--data-dir",
            type=Path,
            metavar="FOLDER",
            help=f"{data} (default: downloaded from the hub)",
        )
    table.add_argument(
        "--device", metavar="DEVICE", help=f"cpu, cuda or cuda:N (default: {device})"
    )
    table.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where run folders and the report go; runs that are done there are kept, others"
        " resumed (default: runs/reproduce-TABLE-BUDGET)",
    )
    add_jobs(table)


def narrow(table: argparse.ArgumentParser, name: str, text: str, unit: str, kind: type) -> None:
    table.add_argument(
        flag(name), nargs="+", type=kind, metavar=unit, help=f"{text} (default: all)"
    )


def narrow_names(table: argparse.ArgumentParser, text: str) -> None:
    narrow(table, "only", f"only runs whose name has one of these words in it: {text}", "WORD", str)


def run_feed_forward(arguments: argparse.Namespace) -> int:
    if arguments.epochs is not None and not 0 < arguments.epochs < math.inf:
        raise ValueError(f"--epochs must be positive; got {arguments.epochs}")
    jobs, common, words = shared(arguments, arguments.device or "cpu")
    return finish(
        feed_forward.reproduce(
            arguments.table,
            arguments.budget,
            folder_of(arguments),
            jobs,
            words,
            common,
            arguments.data_dir,
            distinct(arguments.seeds),
            arguments.epochs,
            arguments.only,
        )
    )


def run_timescales(arguments: argparse.Namespace) -> int:
    if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
        raise ValueError(f"--minutes must be positive; got {arguments.minutes}")
    usual = "cuda" if arguments.budget == "gpu" else "cpu"
    jobs, common, words = shared(arguments, arguments.device or usual)
    return finish(
        timescales.reproduce(
            arguments.budget,
            folder_of(arguments),
            jobs,
            words,
            common,
            arguments.data_dir,
            distinct(arguments.seeds),
            arguments.minutes,
            arguments.only,
        )
    )


def shared(arguments: argparse.Namespace, device: str) -> tuple[int, dict[str, Any], str]:
    """(runs at a time, the options that all of them get, the command that asked for them)."""
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores, device)
    return jobs, {"threads": threads, "device": device}, shlex.join(["dnirnn", *arguments.words])


def folder_of(arguments: argparse.Namespace) -> Path:
    return arguments.out or Path("runs") / f"reproduce-{arguments.table}-{arguments.budget}"


def distinct(seeds: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if seeds is None else tuple(dict.fromkeys(seeds))


def run_recipe(arguments: argparse.Namespace) -> int:
    recipe = RECIPES[arguments.table](arguments.budget)
    device = arguments.device or recipe.options.device
    several = max(arm.processes for arm in recipe.arms) > 1  # a run that takes all cores
    jobs = 1 if several and arguments.jobs is None else arguments.jobs
    jobs, threads = jobs_and_threads(jobs, arguments.usable_cores, device)
    changes: dict[str, Any] = {"threads": threads, "device": device}
    if getattr(arguments, "data_dir", None) is not None:
        changes["data_dir"] = str(arguments.data_dir)
    if arguments.minutes is not None:
        changes |= {"minutes": arguments.minutes, "updates": None, "symbols": None}
    recipe = recipes.narrowed(
        recipe,
        arms=arguments.arms,
        truncations=arguments.truncations,
        decays=getattr(arguments, "decays", None),
    )
    recipe = dataclasses.replace(
        recipe,
        options=dataclasses.replace(recipe.options, **changes),
        seeds=tuple(dict.fromkeys(arguments.seeds or recipe.seeds)),
    )
    folder = folder_of(arguments)
    again = shlex.join(["dnirnn", *arguments.words])
    return finish(reproduce(recipe, folder, jobs, again))


def run(arguments: argparse.Namespace) -> int:
    return arguments.make(arguments)


def reproduce(recipe: Recipe, folder: Path, jobs: int, command: str) -> list[Failure]:
    """Does what is not done of a recipe, ``jobs`` runs at once, and writes the report.

    The folder gets a folder for each run, search/ with those of the search for learning rates, and
    what report writes; interrupted, too, on what is done by then. Returns the runs that failed.

    command: the one that the report names as its own.

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
    failures: list[Failure] = []
    # A teacher's weights are there once it is trained.
    untaught = [run for column, run in runs if column.arm.taught_by is None]
    taught = [run for column, run in runs if column.arm.taught_by is not None]
    notice = checked(recipe.task, untaught)
    print(notice)
    try:
        failures += run_missing(recipe.task, untaught, folder, jobs, False)
        if taught:
            for teachers in dict.fromkeys(run.options.teachers for run in taught):
                checked(recipe.task, [run for run in taught if run.options.teachers == teachers])
            failures += run_missing(recipe.task, taught, folder, jobs, False)
    finally:
        report(recipe, runs, rates, failures, folder, notice, command)
    return failures


def planned_run(recipe: Recipe, column: Column, seed: int, folder: Path, rates: Rates) -> Run:
    arm, changes = column.arm, {"seed": seed}
    own = column if arm.rate_of is None else column._replace(arm=arm._replace(name=arm.rate_of))
    if own.name in rates.found:
        changes["lr"] = rates.found[own.name]
    if arm.taught_by is not None:
        teacher = column._replace(arm=arm._replace(name=arm.taught_by)).name
        seeds = recipe.seeds if arm.every_seed else (seed,)
        changes["teachers"] = tuple(str(folder / f"{teacher}-seed{one}") for one in seeds)
    if arm.processes > 1:
        changes["threads"] = max(1, (recipe.options.threads or 1) // arm.processes)
    name = f"{column.name}-seed{seed}"
    options = options_of(recipe, column, **changes)
    return Run(name, options, folder / name, processes=arm.processes)


def search(recipe: Recipe, planned: Sequence[Column], folder: Path, jobs: int) -> Rates:
    """Each column's best learning rate, by the best validation bits of short runs.

    A run that fails counts as infinitely bad. Raises ValueError where all of a column's fail.
    """
    planned = [column for column in planned if column.arm.rate_of is None]
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
