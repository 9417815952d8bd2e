"""The command line ``dnirnn``: its commands, and what becomes of their errors."""

import argparse
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from dnirnn.commands import (
    compare,
    demo,
    detectors,
    distill,
    doctor,
    evaluate,
    fidelity,
    horizon,
    reproduce,
    runs,
    sample,
    training,
)
from dnirnn.commands.shared import BAD_INPUT, FAILED, OK, rank_here, say, sentence
from dnirnn.config.arguments import Parser
from dnirnn.device import usable_cores
from dnirnn.distributed import RankLost
from dnirnn.renamed import words_of_now
from dnirnn.reports import ray_runs
from dnirnn.training.trainer import Interrupted, NonFinite
from dnirnn.version import __version__

SIGNALLED = 128  # and the signal's number, as a shell has it: 130 Ctrl-C, 143 SIGTERM

# What a command is for, what takes its arguments, and what it runs.
COMMANDS = {
    "train": ("train a model; the same command resumes it", training.add_arguments, training.run),
    "distill": (
        "train a language model on a text and on the predictions of others; resumes likewise",
        distill.add_arguments,
        distill.run,
    ),
    "eval": ("measure a trained model", evaluate.add_arguments, evaluate.run),
    "sample": ("let a trained char-lm write", sample.add_arguments, sample.run),
    "fidelity": (
        "how near what a run's estimator predicts is to the true gradient; a plot of its log",
        fidelity.add_arguments,
        fidelity.run,
    ),
    "horizon": (
        "how many coming steps a cut's gradient comes from: how long a window a run needs",
        horizon.add_arguments,
        horizon.run,
    ),
    "detectors": (
        "where the layers of an hm-lstm detect an end in a text",
        detectors.add_arguments,
        detectors.run,
    ),
    "compare": (
        "train with any options varied, a run each (char-lm where no task is named)",
        compare.add_arguments,
        compare.run,
    ),
    "reproduce": (
        "a table of the paper made again, ours beside theirs; resumes what was interrupted",
        reproduce.add_arguments,
        reproduce.run,
    ),
    "demo": (
        "what synthetic gradients carry beyond a window, in two minutes; nothing to download",
        demo.add_arguments,
        demo.run,
    ),
    "runs": ("what runs there are, and how far they got", runs.add_places, runs.run_runs),
    "table": (
        "any runs of one task side by side: what differs, and their figures",
        runs.add_places,
        runs.run_table,
    ),
    "plot": ("the learning curves of any runs of one task", runs.add_plot, runs.run_plot),
    "doctor": ("what is built, and what this machine offers", doctor.add_arguments, doctor.run),
}


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
        argv = with_task(words_of_now(argv))
        arguments = parser(argv).parse_args(argv)
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
    messages = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(message in str(error) for message in messages)


def memory_asked(error: BaseException) -> str:
    """How much memory an allocation that failed asked for, where torch's error has it."""
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


def show_warning(message: Warning | str, *where: Any) -> None:
    say(f"warning: {message}")


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these words: of the commands, only theirs takes its arguments."""
    top = Parser(
        prog="dnirnn",
        description="Recurrent networks truncated in time, with synthetic gradients at the cuts.",
        epilog="Exit codes: 0 done, 1 a run failed, 2 bad input (one line says what), 130 Ctrl-C,"
        " 143 SIGTERM, 141 a closed pipe."
        " DNIRNN_TRACEBACK=1 shows where in the code an input was refused.",
    )
    top.add_argument("--version", action="version", version=f"dnirnn {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (summary, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=sentence(summary))
        command.set_defaults(command=run)
        if words[:1] == [name]:
            add_arguments(command, words)
    return top
