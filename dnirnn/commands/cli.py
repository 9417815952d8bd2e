"""The command line ``dnirnn``.

train, distill, eval, sample, fidelity, horizon, detectors, compare, reproduce, runs, table, plot, demo, doctor.
"""

import argparse
import dataclasses
import math
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from dnirnn.commands import compare, demo, detectors, doctor, reproduce, training
from dnirnn.commands import runs as any_runs
from dnirnn.config.options import (
    CORES,
    ESTIMATORS,
    add_arguments,
    changeable,
    flag,
    for_each,
    from_arguments,
)
from dnirnn.config.recipes import read as read_recipe
from dnirnn.config.recipes import recipes as recipes_of
from dnirnn.config.registry import TASKS
from dnirnn.device import find_device, usable_cores
from dnirnn.distributed import RankLost
from dnirnn.reports import feed_forward, ray_runs, recipes
from dnirnn.reports.runs import Failure
from dnirnn.training.trainer import AnotherRun, Interrupted, NonFinite, read_config
from dnirnn.version import __version__

OK, FAILED, BAD_INPUT = 0, 1, 2
SIGNALLED = 128  # and the signal's number, as a shell says it: 130 Ctrl-C, 143 SIGTERM

SUMMARIES = {
    "char-lm": "a language model that predicts each character of a text from those before it",
    "word-lm": "a language model that predicts each word of a text from those before it",
    "copy": "read a sequence of random bits, then say it again; the sequences grow as it learns",
    "repeat-copy": "read a sequence of random bits, then say it so many times, then that it is over",
    "adding": "the sum of the two marked numbers of a long sequence, said at its end",
    "digits": "two networks of two rates count the odd ones and the 3s of a stream of pictures",
    "images": "a feed-forward network, cut between its layers, says what a picture shows",
}
COMPARED = ("core", "truncation", "estimator", "training", "seed", "threads")


class UsageError(ValueError):
    """Words on the command line that argparse does not take."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command line."""

    def __init__(self, **keywords: Any):
        super().__init__(
            **keywords,
            allow_abbrev=False,
            formatter_class=partial(argparse.HelpFormatter, max_help_position=32, width=100),
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; its exit code.

    0, 1 a run that failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM, 141 nobody reads what it prints.
    """
    print_anything()
    try:
        code = answer(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is left in the buffer would be written, and complained of, once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGNALLED + signal.SIGPIPE


def answer(argv: list[str]) -> int:
    """Does what the words ask; errors become one line and an exit code."""
    try:
        arguments = parser().parse_args(with_task(argv))
        arguments.words = argv
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            with ray_runs.on(getattr(arguments, "on", None), usable_cores()) as arguments.usable_cores:
                return arguments.command(arguments)
    except SystemExit as done:  # --help and --version
        return int(done.code or OK)
    except (Interrupted, KeyboardInterrupt) as stopped:
        if str(stopped):
            say(str(stopped))
        again = shlex.join(["dnirnn", *without_restart(argv)])
        again = "the same torchrun again" if rank_here() is not None else again
        say(f"interrupted; to go on from there: {again}")
        return SIGNALLED + getattr(stopped, "signal", signal.SIGINT)
    except NonFinite as error:
        say(f"{error}; to go on from there with another learning rate: add --resume-with --lr RATE")
        return FAILED
    except RankLost as error:
        say(f"{error}; started again, the run goes on from its last checkpoint")
        return FAILED
    except BrokenPipeError:
        raise
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("DNIRNN_TRACEBACK") or not is_of_memory(error):
            raise
        say(f"{memory_asked(error)}: make the network, --batch or --truncation smaller")
        return BAD_INPUT
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("DNIRNN_TRACEBACK"):
            raise
        say(str(error))
        return BAD_INPUT


def without_restart(argv: list[str]) -> list[str]:
    """The words that go on from where these began anew."""
    return [word for word in argv if word != "--restart"]


def print_anything() -> None:
    """A character that the terminal's encoding lacks is printed as its number, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not have the memory that it asked for."""
    said = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def memory_asked(error: BaseException) -> str:
    """How much memory an allocation that failed asked for, where torch says it."""
    asked = re.search(r"allocate ([\d.]+ \w*)", str(error)) or re.search(r"(sizes=.*)", str(error))
    if asked is None:
        return "there is not enough memory"
    amount, _, unit = asked[1].partition(" ")
    if unit == "bytes":
        return f"there is not enough memory: {int(amount) / 1e9:,.1f} GB more were asked for"
    return f"there is not enough memory: {asked[1]} were asked for"


def with_task(argv: list[str]) -> list[str]:
    """``compare`` without a task compares language models."""
    options_follow = argv[1:2] == [] or argv[1].startswith("-") and argv[1] not in ("-h", "--help")
    return ["compare", "char-lm", *argv[1:]] if argv[:1] == ["compare"] and options_follow else argv


def say(message: str) -> None:
    """One line on stderr."""
    rank = rank_here()
    who = "dnirnn" if rank is None else f"dnirnn, rank {rank}"
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr)


def rank_here() -> int | None:
    """Which of torchrun's processes this is; None where it is the only one."""
    return int(os.environ.get("RANK", 0)) if os.environ.get("WORLD_SIZE", "1") != "1" else None


def show_warning(message: Warning | str, *where: Any) -> None:
    say(f"warning: {message}")


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="dnirnn",
        description="Recurrent networks truncated in time, with synthetic gradients at the cuts.",
        epilog="Exit codes: 0 done, 1 a run failed, 2 bad input (one line says what), 130 Ctrl-C,"
        " 143 SIGTERM, 141 a closed pipe."
        " DNIRNN_TRACEBACK=1 shows where in the code an input was refused.",
    )
    top.add_argument("--version", action="version", version=f"dnirnn {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_train(command(commands, "train", "train a model; the same command resumes it", None))
    summary = "train a language model on a text and on the predictions of others; resumes likewise"
    add_distill(command(commands, "distill", summary, run_distill))
    add_eval(command(commands, "eval", "measure a trained model", run_eval))
    add_sample(command(commands, "sample", "let a trained char-lm write", run_sample))
    summary = "how near what a run's estimator says is to the true gradient; a plot of its log"
    add_fidelity(command(commands, "fidelity", summary, run_fidelity))
    summary = "how many coming steps a cut's gradient comes from: how long a window a run needs"
    add_horizon(command(commands, "horizon", summary, run_horizon))
    summary = "where the layers of an hm-lstm detect an end in a text"
    add_detectors(command(commands, "detectors", summary, run_detectors))
    summary = "train with several cores, truncations, estimators (char-lm where no task is named)"
    add_compare(command(commands, "compare", summary, None))
    summary = "a table of the paper made again, ours beside theirs; resumes what was interrupted"
    add_reproduce(command(commands, "reproduce", summary, None))
    summary = "what synthetic gradients carry beyond a window, in two minutes; nothing to download"
    add_demo(command(commands, "demo", summary, run_demo))
    add_places(command(commands, "runs", "what runs there are, and how far they got", run_runs))
    summary = "any runs of one task side by side: what differs, and their figures"
    add_places(command(commands, "table", summary, run_table))
    summary = "the learning curves of any runs of one task"
    add_plot(command(commands, "plot", summary, run_plot))
    command(commands, "doctor", "what is built, and what this machine offers", run_doctor)
    return top


def command(
    commands: Any, name: str, summary: str, run: Callable[[argparse.Namespace], int] | None
) -> argparse.ArgumentParser:
    sentence = f"{summary[0].upper()}{summary[1:]}."
    added = commands.add_parser(name, help=summary, description=sentence)
    if run is not None:
        added.set_defaults(command=run)
    return added


def task_parsers(
    parent: argparse.ArgumentParser, run: Callable
) -> dict[str, argparse.ArgumentParser]:
    tasks = parent.add_subparsers(title="tasks", metavar="TASK", dest="task", required=True)
    return {name: command(tasks, name, SUMMARIES[name], run) for name in TASKS}


def add_train(parent: argparse.ArgumentParser) -> None:
    for name, task in task_parsers(parent, run_train).items():
        add_out(task, TASKS[name].Options)
        known = recipes_of(name)
        if known:
            task.add_argument(
                "--recipe",
                choices=tuple(known),
                help="the options for the best model in so many minutes on such a machine; others that are"
                " given go over them; it says first what to expect, and where the file is",
            )
        add_arguments(task, TASKS[name].Options)


def add_out(parent: argparse.ArgumentParser, options: type) -> None:
    """Where a run goes, and what becomes of one that is there."""
    parent.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder: configuration, log, checkpoints, result; a run found there with the"
        " same options is resumed (default: runs/ and a name made of the main options)",
    )
    go_on = parent.add_mutually_exclusive_group()
    go_on.add_argument(
        "--restart",
        action="store_true",
        help="begin anew in the run folder; the run that is there is moved aside and kept",
    )
    go_on.add_argument(
        "--resume-with",
        action="store_true",
        help="go on with the run that is there and the options given here where they differ, of"
        f" {', '.join(map(flag, changeable(options)))}",
    )


def run_train(arguments: argparse.Namespace) -> int:
    kind = TASKS[arguments.task].Options
    options = from_arguments(kind, arguments)
    if getattr(arguments, "recipe", None):
        values, lines = read_recipe(arguments.task, arguments.recipe)
        options = kind(**values | given(arguments.words, kind))
        print("\n".join(lines), flush=True)
    return start(arguments.task, options, arguments)


def given(words: Sequence[str], options: type) -> dict[str, Any]:
    """The options that the words of a command line give, and no defaults."""
    reader = Parser(prog="dnirnn", add_help=False)
    add_arguments(reader, options)
    for action in reader._actions:
        action.default = argparse.SUPPRESS
    return vars(reader.parse_known_args(words)[0])


def add_distill(parent: argparse.ArgumentParser) -> None:
    options = TASKS["char-lm"].Options
    parent.add_argument(
        "teachers",
        nargs="+",
        metavar="RUN",
        help="run folders of trained char-lm or word-lm, on the same symbols: the teachers, whose mean prediction"
        " is learned beside the text",
    )
    add_out(parent, options)
    of_teacher = dict.fromkeys(TEXT_PLACES, argparse.SUPPRESS)
    add_arguments(parent, options, omit=("teachers", "smoothing"), **of_teacher)


def run_distill(arguments: argparse.Namespace) -> int:
    config = read_config(Path(arguments.teachers[0]))
    task = "word-lm" if config.get("task") == "word-lm" else "char-lm"
    given = {name: value for name, value in vars(arguments).items() if name in TEXT_PLACES}
    if "corpus" not in given:
        given = {name: config[name] for name in TEXT_PLACES if name in config} | given
    if task == "word-lm":
        given["rarest"] = config["rarest"]
    return start(task, from_arguments(TASKS[task].Options, arguments, **given), arguments)


def start(task: str, options: Any, arguments: argparse.Namespace) -> int:
    """Trains, or resumes, the run of these options."""
    folder = arguments.out or training.default_folder(task, options)
    try:
        training.train(task, options, folder, arguments.restart, arguments.resume_with)
    except AnotherRun as error:
        known = changeable(type(options))
        if all(key in known for key in error.differing):
            raise ValueError(f"{error}, --resume-with to go on so, or --restart") from None
        raise ValueError(f"{error}, or --restart to begin anew in this one") from None
    return OK


def add_eval(parent: argparse.ArgumentParser) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        help="with char-lm and digits: which part of the data (default: test)",
    )
    parent.add_argument(
        "--text",
        metavar="FILE",
        help="with char-lm: evaluate this UTF-8 file, whole, in place of a part of the run's data",
    )
    parent.add_argument(
        "--others",
        nargs="+",
        metavar="RUN",
        help="with char-lm: runs of the same symbols, whose mean prediction together with RUN's is"
        " measured: an ensemble",
    )
    dynamic = parent.add_argument_group("dynamic evaluation, with char-lm: the weights move")
    dynamic.add_argument(
        "--dynamic",
        action="store_true",
        help="also measure it while the model goes on learning from what it has read (Krause et al."
        " 2018); the run itself stays as it is",
    )
    dynamic.add_argument(
        "--dynamic-steps",
        type=at_least_one,
        metavar="STEPS",
        help="steps from one update to the next (default: 20)",
    )
    for name, what, unit in (
        ("rate", "the updates' learning rate", "RATE"),
        ("decay", "how strongly the weights are drawn back to where they began", "FRACTION"),
    ):
        dynamic.add_argument(
            f"--dynamic-{name}",
            type=at_least_zero,
            metavar=unit,
            help=f"{what} (default: searched for on validation)",
        )
    moved = parent.add_argument_group("where the data is now, if not where it was for training")
    for name in TEXT_PLACES:
        moved.add_argument(flag(name), metavar="PATH")


TEXT_PLACES = ("corpus", "data_dir", "valid_file", "test_file")


def run_eval(arguments: argparse.Namespace) -> int:
    places = {name: getattr(arguments, name) for name in (*TEXT_PLACES, "text")}
    for name in ("dynamic_steps", "dynamic_rate", "dynamic_decay"):
        places[name] = getattr(arguments, name)
        if places[name] is not None and not arguments.dynamic:
            raise ValueError(f"{flag(name)} goes with --dynamic only; got {places[name]}")
    if arguments.dynamic:
        places |= {"dynamic": True, "dynamic_steps": arguments.dynamic_steps or 20}
    places["others"] = arguments.others
    if arguments.others and arguments.dynamic:
        raise ValueError("--others are measured as they are: no --dynamic")
    if arguments.text is not None and arguments.split is not None:
        raise ValueError(f"--split is of the run's data, --text another text; got {arguments.split}")
    training.evaluate(
        arguments.run, arguments.split, arguments.weights, places, arguments.device
    )
    return OK


def add_sample(parent: argparse.ArgumentParser) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="NUMBER",
        help="divides the logits: 0 always takes the likeliest character, 1 draws as the model"
        " learned, more gives more variety (default: 1.0)",
    )
    parent.add_argument(
        "--length", type=int, default=500, metavar="CHARACTERS", help="how much (default: 500)"
    )
    parent.add_argument(
        "--prime", default="", metavar="TEXT", help="what it goes on from (default: a new line)"
    )
    parent.add_argument(
        "--seed", type=int, default=0, metavar="SEED", help="seed of the draws (default: 0)"
    )


def run_sample(arguments: argparse.Namespace) -> int:
    training.sample(
        arguments.run,
        arguments.weights,
        arguments.length,
        arguments.temperature,
        arguments.prime,
        arguments.seed,
        arguments.device,
    )
    return OK


def add_detectors(parent: argparse.ArgumentParser) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--text", metavar="TEXT", help="what it reads (default: the run's own test split)"
    )
    parent.add_argument(
        "--length",
        type=at_least_one,
        metavar="CHARACTERS",
        help="how much of it (default: all of --text; 400 characters of the test split)",
    )
    parent.add_argument(
        "--out", type=Path, metavar="FILE", help="the picture (default: detectors.png in RUN)"
    )


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return int(text)


def at_least_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0; got {text}")
    return value


def run_detectors(arguments: argparse.Namespace) -> int:
    detectors.detectors(
        arguments.run,
        arguments.weights,
        arguments.text,
        arguments.length,
        arguments.out,
        arguments.device,
    )
    return OK


def add_fidelity(parent: argparse.ArgumentParser) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--lookahead",
        type=at_least_one,
        default=40,
        metavar="STEPS",
        help="how far the true gradient looks ahead, rounded up to whole chunks (default: 40)",
    )


def add_horizon(parent: argparse.ArgumentParser) -> None:
    add_run_folder(parent)
    parent.add_argument(
        "--lookahead",
        type=at_least_one,
        default=40,
        metavar="STEPS",
        help="the coming steps that a cut's gradient is taken to be of, all in all (default: 40)",
    )


def run_horizon(arguments: argparse.Namespace) -> int:
    training.report_horizon(
        arguments.run, arguments.weights, arguments.lookahead, arguments.device
    )
    return OK


def run_fidelity(arguments: argparse.Namespace) -> int:
    training.report_fidelity(
        arguments.run, arguments.weights, arguments.lookahead, arguments.device
    )
    return OK


def add_run_folder(parent: argparse.ArgumentParser) -> None:
    parent.add_argument("run", type=Path, metavar="RUN", help="the run folder of dnirnn train")
    parent.add_argument(
        "--weights",
        choices=("best", "latest"),
        default="best",
        help="those that did best on validation, or the last ones saved (default: best)",
    )
    parent.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="where to compute: cpu, cuda or cuda:N, wherever it was trained (default: cpu)",
    )


def add_compare(parent: argparse.ArgumentParser) -> None:
    for name, task in task_parsers(parent, run_compare).items():
        group = task.add_argument_group("comparison")
        if name == "images":
            add_estimators(group, TASKS[name].ESTIMATORS, ["none", "zero", "dni", "cdni"])
        elif name == "digits":
            add_cores(group)
            add_trainings(group, TASKS[name].TRAININGS)
        else:
            add_cores(group)
            add_truncations(group)
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
            help="learning rates of their own for arms: 40=2e-3 for a truncation, dni:8=5e-4 for a"
            " truncation and an estimator (default: --lr for all)",
        )
        group.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="where the run folders and results go; runs that are done there are kept, others"
            " resumed (default: runs/compare- and the task's main options)",
        )
        add_jobs(group)
        add_arguments(task, TASKS[name].Options, omit=COMPARED)


def add_cores(group: Any) -> None:
    group.add_argument(
        "--cores",
        nargs="+",
        choices=CORES,
        default=["lstm"],
        metavar="CORE",
        help=f"recurrent networks, of {', '.join(CORES)} (dnirnn train TASK --help explains them);"
        " an option goes to those that it goes with (default: lstm)",
    )


def add_truncations(group: Any) -> None:
    group.add_argument(
        "--truncations",
        type=int,
        nargs="+",
        default=[2, 8, 40],
        metavar="STEPS",
        help="steps a chunk: how far back a gradient is carried exactly (default: 2 8 40)",
    )
    add_estimators(group, ESTIMATORS, ["none", "dni"])


def add_estimators(group: Any, choices: Sequence[str], default: list[str]) -> None:
    group.add_argument(
        "--estimators",
        nargs="+",
        choices=choices,
        default=default,
        help="what stands at a cut (dnirnn train TASK --help explains them)"
        f" (default: {' '.join(default)})",
    )


def add_trainings(group: Any, trainings: Sequence[str]) -> None:
    group.add_argument(
        "--trainings",
        nargs="+",
        choices=trainings,
        default=trainings,
        help="backpropagation over network B's horizon, cut at each of its ticks, the same with"
        f" synthetic gradients (default: {' '.join(trainings)})",
    )


def add_jobs(group: Any) -> None:
    group.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="RUNS",
        help="runs at a time, which share the cores: small networks learn more in all as many runs"
        " of one thread than as one of many (default: one a core, and one on a GPU)",
    )
    group.add_argument(
        "--on",
        metavar="ray[:ADDRESS]",
        help="where the runs go: tasks of the Ray cluster at ADDRESS (auto: the one that is there), whose"
        " machines all see the folder, or of a local one where none is given (default: processes here)",
    )


def jobs_and_threads(jobs: int | None, cores: int, device: str = "cpu") -> tuple[int, int]:
    """Runs at a time, and the threads of each: what is left over of the cores is shared.

    jobs: None: one a core, and one where they would share a GPU.
    """
    on_gpu = find_device(device).type == "cuda"
    jobs = (1 if on_gpu else cores) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {jobs}")
    return jobs, max(1, cores // jobs)


def arm_rate(text: str) -> tuple[tuple[str | None, int], float]:
    arm, _, rate = text.partition("=")
    estimator, colon, truncation = arm.rpartition(":")
    try:
        value = float(rate)
        return (estimator if colon else None, int(truncation)), value
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be TRUNCATION=RATE or ESTIMATOR:TRUNCATION=RATE; got {text!r}"
        ) from None


def run_compare(arguments: argparse.Namespace) -> int:
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores, arguments.device)
    kind = TASKS[arguments.task].Options
    cores: list[dict[str, Any]] = [{}]
    if arguments.task != "images":
        cores = for_each(kind, "core", arguments.cores)
    if arguments.task == "images":
        arms = [(kind.truncation, estimator) for estimator in arguments.estimators]
    elif arguments.task == "digits":
        ways = [kind(period=arguments.period, training=way) for way in arguments.trainings]
        arms = [(way.truncation, way.estimator) for way in ways]
    else:
        arms = list(product(arguments.truncations, arguments.estimators))
    networks = [
        from_arguments(kind, arguments, threads=threads, **core, **estimator)
        for core in cores
        for estimator in for_each(kind, "estimator", [estimator for _, estimator in arms])
    ]
    folder = arguments.out or compare_folder(arguments.task, networks)
    runs = compare.plan(networks, folder, arms, arguments.seeds, dict(arguments.lrs))
    return finish(compare.compare(arguments.task, runs, folder, jobs, arguments.quiet))


def compare_folder(task: str, networks: Sequence[Any]) -> Path:
    """runs/compare- and the run folders' names without what is compared."""
    name = training.default_folder(task, networks[0]).name.rsplit("-T", 1)[0]
    _, *others = dict.fromkeys(options.core for options in networks)
    return Path("runs") / "-".join(("compare", name, *others))


def add_reproduce(parent: argparse.ArgumentParser) -> None:
    tables = parent.add_subparsers(title="tables", metavar="TABLE", dest="table", required=True)
    for name, summary in recipes.SUMMARIES.items():
        recipe = recipes.RECIPES[name](recipes.BUDGETS[0])
        table = command(tables, name, summary, run_reproduce)
        table.add_argument(
            "--budget",
            choices=recipes.BUDGETS,
            default="cpu",
            help="the recipe: quick, a smoke run of minutes; cpu, for two cores, up to three hours;"
            " gpu, the paper's sizes (default: cpu)",
        )
        arms = {arm.name: arm.label for arm in recipe.arms}
        said = ", ".join(f"{arm} ({label})" for arm, label in arms.items())
        narrow(table, "arms", f"only these ways of training, of {said}", "ARM", str)
        known = ", ".join(map(str, recipe.truncations))
        narrow(table, "truncations", f"only these, of {known}", "STEPS", int)
        if len(recipe.decays) > 1:
            known = ", ".join(recipe.decays)
            narrow(table, "decays", f"only these of the learning rate, of {known}", "DECAY", str)
        table.add_argument(
            "--seeds",
            type=int,
            nargs="+",
            metavar="SEED",
            help="a run of every arm and truncation for each (default: the budget's, 0 or 0 1 2)",
        )
        table.add_argument(
            "--minutes",
            type=float,
            metavar="MINUTES",
            help="training time of a run, in place of the budget's own limit; searches for learning"
            " rates keep theirs",
        )
        table.add_argument(
            "--device",
            metavar="DEVICE",
            help="where to compute: cpu, cuda or cuda:N (default: cuda with --budget gpu, else cpu)",
        )
        if hasattr(recipe.options, "data_dir"):
            table.add_argument(
                "--data-dir",
                metavar="FOLDER",
                help="where ptb.train.txt, ptb.valid.txt and ptb.test.txt are (default: downloaded"
                " from the hub)",
            )
        table.add_argument(
            "--out",
            type=Path,
            metavar="FOLDER",
            help="where run folders and the report go; runs that are done there are kept, others"
            " resumed (default: runs/reproduce-TABLE-BUDGET)",
        )
        add_jobs(table)
    for name, summary in feed_forward.SUMMARIES.items():
        add_feed_forward(command(tables, name, summary, run_feed_forward))


def add_feed_forward(table: argparse.ArgumentParser) -> None:
    table.add_argument(
        "--budget",
        choices=feed_forward.BUDGETS,
        default="cpu",
        help="quick, a smoke run on scikit-learn's digits; cpu, for two cores, hours (default: cpu)",
    )
    table.add_argument(
        "--only",
        nargs="+",
        metavar="WORD",
        help="only runs whose name has one of these words in it, such as mnist-fcn3, -cdni, random"
        " (default: all)",
    )
    table.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help="(default: 0 1 2; 0 in quick)"
    )
    table.add_argument(
        "--epochs",
        type=float,
        metavar="EPOCHS",
        help="of every run, in place of the budget's own number",
    )
    table.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="with the folders mnist and cifar10 in it (default: downloaded from the hub)",
    )
    table.add_argument(
        "--device", default="cpu", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cpu)"
    )
    table.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where run folders and the report go; runs that are done there are kept, others"
        " resumed (default: runs/reproduce-TABLE-BUDGET)",
    )
    add_jobs(table)


def run_feed_forward(arguments: argparse.Namespace) -> int:
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores, arguments.device)
    folder = arguments.out or Path("runs") / f"reproduce-{arguments.table}-{arguments.budget}"
    if arguments.epochs is not None and not 0 < arguments.epochs < float("inf"):
        raise ValueError(f"--epochs must be positive; got {arguments.epochs}")
    return finish(
        feed_forward.reproduce(
            arguments.table,
            arguments.budget,
            folder,
            jobs,
            shlex.join(["dnirnn", *arguments.words]),
            {"threads": threads, "device": arguments.device},
            arguments.data_dir,
            arguments.seeds and tuple(dict.fromkeys(arguments.seeds)),
            arguments.epochs,
            arguments.only,
        )
    )


def narrow(parser: argparse.ArgumentParser, name: str, said: str, unit: str, kind: type) -> None:
    parser.add_argument(
        flag(name), nargs="+", type=kind, metavar=unit, help=f"{said} (default: all)"
    )


def run_reproduce(arguments: argparse.Namespace) -> int:
    recipe = recipes.RECIPES[arguments.table](arguments.budget)
    device = arguments.device or recipe.options.device
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores, device)
    changes: dict[str, Any] = {"threads": threads, "device": device}
    if getattr(arguments, "data_dir", None) is not None:
        changes["data_dir"] = arguments.data_dir
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
    folder = arguments.out or Path("runs") / f"reproduce-{arguments.table}-{arguments.budget}"
    again = shlex.join(["dnirnn", *arguments.words])
    return finish(reproduce.reproduce(recipe, folder, jobs, again))


def finish(failures: Sequence[Failure]) -> int:
    for failure in failures:
        say(f"{failure.run}: {failure.reason}")
    return FAILED if failures else OK


def add_demo(parent: argparse.ArgumentParser) -> None:
    parent.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="where runs and results go (default: runs/demo)",
    )
    parent.add_argument(
        "--minutes",
        type=float,
        default=demo.MINUTES,
        metavar="MINUTES",
        help=f"wall clock for all of it, about (default: {demo.MINUTES})",
    )
    add_jobs(parent)


def run_demo(arguments: argparse.Namespace) -> int:
    jobs, threads = jobs_and_threads(arguments.jobs, arguments.usable_cores)
    return finish(demo.demo(arguments.out, arguments.minutes, jobs, threads))


def add_places(parent: argparse.ArgumentParser) -> None:
    parent.add_argument(
        "places",
        type=Path,
        nargs="*",
        default=[Path("runs")],
        metavar="FOLDER",
        help="run folders, or folders that hold some (default: runs)",
    )


def run_runs(arguments: argparse.Namespace) -> int:
    any_runs.list_runs(arguments.places)
    return OK


def run_table(arguments: argparse.Namespace) -> int:
    any_runs.table(arguments.places)
    return OK


def add_plot(parent: argparse.ArgumentParser) -> None:
    add_places(parent)
    parent.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="the picture (default: curves.png)",
    )
    parent.add_argument(
        "--metric", metavar="NAME", help="of the log's evaluations (default: the task's first)"
    )


def run_plot(arguments: argparse.Namespace) -> int:
    any_runs.plot(arguments.places, arguments.out, arguments.metric)
    return OK


def run_doctor(arguments: argparse.Namespace) -> int:
    print(doctor.report())
    return OK
