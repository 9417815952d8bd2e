"""compare: any options varied on one task, a run folder each, and what came out."""

import argparse
import re
import typing
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from dnirnn.commands.shared import add_jobs, finish, jobs_and_threads, task_parsers
from dnirnn.commands.training import add_config, default_folder, file_name, file_values
from dnirnn.config.arguments import add_options, given, reader
from dnirnn.config.registry import TASKS
from dnirnn.config.task import steps_per_update
from dnirnn.groups import OptionGroup, every_option, fitting, kinds_of, listed, misplaced
from dnirnn.options import Config, Field, Registry, fields_of, flag
from dnirnn.renamed import by_name_of_now
from dnirnn.reports.comparison import ARM, others_in, report, word_of
from dnirnn.reports.runs import Failure, Run, checked, run_missing

# Flags that vary an option, and what they vary it over where nothing is given.
SHORT = {
    "cores": ("core", ("lstm",)),
    "truncations": ("truncation", (2, 8, 40)),
    "estimators": ("estimator", ("none", "dni")),
    "trainings": ("training", ()),
}


def add_arguments(parent: argparse.ArgumentParser, words: Sequence[str]) -> None:
    name, task = task_parsers(parent, words)
    if task is None:
        return
    kind = TASKS[name].Options
    group = task.add_argument_group("comparison")
    group.add_argument(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="an option and the values to compare: --vary lr 1e-3 2e-3. Given several times, all"
        " combinations are run. Of an option of several words, a value is 1,2,4; of one without a"
        " word, yes or no. An option of a core or an estimator goes to those that it goes with",
    )
    usual = compared(name)
    for short, (option, _) in SHORT.items():
        if option in usual:
            default = " ".join(map(str, usual[option]))
            group.add_argument(
                flag(short),
                nargs="+",
                default=None,
                metavar=option.upper(),
                help=f"the same as --vary {option} (default, where nothing is varied: {default})",
            )
    group.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="SEED",
        help="a run of every arm for each seed; the table has their spread (default: 0)",
    )
    group.add_argument(
        "--lrs",
        type=arm_rate,
        nargs="+",
        default=[],
        metavar="ARM=RATE",
        help="learning rates of their own for arms, by one or more of their values: 40=2e-3, or"
        " dni:8=5e-4 for arms that have both (default: --lr for all)",
    )
    group.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the run folders and results go; runs that are done there are kept, others"
        " resumed (default: runs/compare- and the task's main options)",
    )
    add_jobs(group)
    add_config(group)
    add_options(task, kind, shown(kind, words), omit=("seed", "threads"))


def compared(task: str) -> dict[str, Sequence[Any]]:
    """What a task compares by default, by option."""
    known = every_option(TASKS[task].Options)
    usual = {option: values for option, values in SHORT.values() if values and option in known}
    return getattr(TASKS[task], "COMPARED", usual)


def shown(kind: type[OptionGroup], words: Sequence[str]) -> list[dict[str, type[Config]]]:
    """The choices that the arguments vary, as far as is seen before they are parsed."""
    names = {name: [value.name] for name, value in kind().choices().items()}
    for name, field in fields_of(kind).items():
        if name in names:
            names[name] += [word for word in words if is_chosen(field.metadata["registry"], word)]
    return [
        kinds_of(kind, dict(zip(names, values))) for values in product(*names.values())
    ]


def is_chosen(registry: Registry, word: str) -> bool:
    """Whether a word can be the name of one of the kind."""
    try:
        return word in registry.known or bool(re.fullmatch(r"[\w.]+:\w+", word) and registry[word])
    except ValueError:  # of another kind, or something else
        return False


def arm_rate(text: str) -> tuple[str, float]:
    arm, _, rate = text.rpartition("=")
    try:
        return arm, float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be ARM=RATE, such as dni:8=5e-4; got {text!r}") from None


def run(arguments: argparse.Namespace) -> int:
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores, getattr(arguments, "device", "cpu"))
    task, flags = arguments.task, given(arguments)
    kind, base = TASKS[task].Options, {**file_values(task, arguments.config), "threads": threads}
    vary = {short: getattr(arguments, short, None) for short in SHORT}
    vary = [(SHORT[short][0], words) for short, words in vary.items() if words]
    vary += [(name_of(one), one[1:]) for one in arguments.vary]
    own = listed(kind, kinds_of(kind, {**base, **flags}))  # those of a person's own class, too
    known = {**{field.name: [field] for field, _ in own}, **every_option(kind)}
    varied = {name: values_of(known, name, words) for name, words in vary}
    if not arguments.vary:
        usual = {k: list(v) for k, v in compared(task).items() if k not in varied and k not in flags}
        varied = {**usual, **varied}
    named = [name_of(one) for one in arguments.vary]
    options = (base, flags)
    folder = arguments.out or compare_folder(task, [one for one, _ in arms(kind, *options, varied)])
    rates = dict(arguments.lrs)
    runs = plan(task, flags, varied, folder, arguments.seeds, rates, base, named)
    return finish(compare(task, runs, folder, jobs, flags.get("quiet", False)))


def name_of(vary: Sequence[str]) -> str:
    """The option that a --vary names, by its name of now."""
    (name,) = by_name_of_now({vary[0].replace("-", "_"): None})
    return name


def values_of(known: Mapping[str, Sequence[Field]], name: str, words: Sequence[str]) -> list[Any]:
    """The values of an option that is varied, of the options there are.

    Raises ValueError for an option that there is none of, no values, or one that can't be read.
    """
    if name not in known or name in ("seed", "threads"):
        why = "--seeds" if name == "seed" else f"one of {', '.join(known)}"
        raise ValueError(f"--vary must name an option: {why}; got {name}")
    if not words:
        raise ValueError(f"--vary {name} must have values; got none")
    return list(dict.fromkeys(value_of(known[name], word) for word in words))


def value_of(fields: Sequence[Field], word: str) -> Any:
    field = fields[0]
    kinds = {kind for one in fields for kind in typing.get_args(one.type)}
    if field.type is bool:
        if word not in ("yes", "no"):
            raise ValueError(f"--vary {field.name} must have values yes or no; got {word!r}")
        return word == "yes"
    if word == "none" and type(None) in kinds:
        return None
    read = reader(*fields)
    try:
        return tuple(map(read, word.split(","))) if field.metadata["many"] else read(word)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--vary {field.name}: {error}; got {word!r}") from None


Arm = tuple[OptionGroup, dict[str, Any]]


def arms(
    kind: type[OptionGroup],
    base: Mapping[str, Any],
    given: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
) -> list[Arm]:
    """Each arm's options and the values that it varies, all that are different.

    base: values under all; of them each arm has what goes with it. given: the same, but each must go
    with some arm.

    Raises ValueError for one that goes with none.
    """
    found: list[Arm] = []
    used: set[str] = set()
    for values in product(*varied.values()):
        arm = dict(zip(varied, values))
        fit = fitting(kind, {**base, **given, **arm})
        used |= fit.keys()
        options = kind(**fit)
        if all(options != other for other, _ in found):
            found.append((options, {name: arm[name] for name in arm if name in fit}))
    for name in (*given, *varied):
        if name not in used:
            raise ValueError(misplaced(kind, name, found[0][0].choices()))
    return found


def plan(
    task: str,
    given: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
    folder: Path,
    seeds: Sequence[int] = (0,),
    rates: Mapping[str, float] | None = None,
    base: Mapping[str, Any] | None = None,
    named: Sequence[str] = (),
) -> list[Run]:
    """A run for each arm and seed, seed by seed.

    given, base: see :func:`arms`.
    rates: learning rates of arms, by one or more of their values, joined by colons.
    named: options whose value a run's name has, even where only one is compared.

    Raises ValueError for a rate of an arm that is not compared.
    """
    planned = arms(TASKS[task].Options, base or {}, given, varied)
    asked = {arm: frozenset(arm.split(":")) for arm in rates or {}}
    several = [name for name, values in varied.items() if len(values) > 1 or name in named]
    runs, used = [], set()
    for seed in dict.fromkeys(seeds):
        for options, arm in planned:
            words = {word_of(value) for value in (*arm.values(), *main_values(options))}
            fit = sorted((one for one in asked if asked[one] <= words), key=lambda a: len(asked[a]))
            used |= set(fit)
            rate = {"lr": rates[fit[-1]]} if fit else {}
            made = options.but(seed=seed, quiet=True, **rate)
            steps_per_update(made)
            name = run_name(made, [one for one in several if one in arm])
            runs.append(Run(name, made, folder / name))
    for arm in asked:
        if arm not in used:
            raise ValueError(f"--lrs gives a rate for {arm}, which is not compared")
    return runs


def main_values(options: OptionGroup) -> tuple[Any, Any]:
    return getattr(options, "truncation", None), getattr(options, "estimator", None)


def run_name(options: OptionGroup, varied: Sequence[str]) -> str:
    """The core where it is varied, the truncation, the estimator, what else is varied, the seed."""
    parts = [str(options.core)] if "core" in varied else []
    truncation, estimator = main_values(options)
    parts += [] if truncation is None else [f"T{truncation}"]
    parts += [] if estimator is None else [str(estimator)]
    for name in varied:
        if name not in (*ARM[:3], "training"):
            parts.append(f"{name}{word_of(getattr(options, name))}")
    return file_name("-".join([*parts, f"seed{options.seed}"]))


def compare_folder(task: str, compared: Sequence[OptionGroup]) -> Path:
    """runs/compare- and the run folders' names without what is compared."""
    name = default_folder(task, compared[0]).name.rsplit("-T", 1)[0]
    _, *others = dict.fromkeys(file_name(str(options.core)) for options in compared)
    return Path("runs") / "-".join(("compare", name, *others))


def compare(task: str, runs: Sequence[Run], folder: Path, jobs: int, quiet: bool) -> list[Failure]:
    """Does the runs that are not done, ``jobs`` at once; writes and prints what came out.

    The folder gets results.csv, log.jsonl (the runs' logs in one) and curves.png, of these runs and
    of those that earlier comparisons did there. Returns the runs that failed.

    Raises ValueError, before anything is run, where a run's folder holds another configuration.
    """
    notice = checked(task, runs)
    print(notice)
    failures = run_missing(task, runs, folder, jobs, quiet)
    report(task, [*runs, *others_in(folder, task, runs)], folder, notice)
    return failures
