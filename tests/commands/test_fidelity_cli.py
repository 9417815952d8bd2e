"""The estimator's options on the command line: what they make, refuse, and what fidelity says."""

import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import end_of

from dnirnn import BPLambda, LeastSquares, SyntheticGradient, TrueGradient
from dnirnn.commands import compare
from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.estimators.base import ESTIMATORS
from dnirnn.reports.report import words_of
from dnirnn.tasks import adding, char_lm, copy, digits, repeat_copy
from dnirnn.tasks.copy import CopyOptions, build
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer

COPY = "--bits 1 --hidden 4 --batch 4 --truncation 2 --max-length 3 --quiet".split()


def estimator(**options):
    given = dict(bits=1, hidden=4, batch=4, truncation=2, max_length=3)
    return build(CopyOptions(**given, **options)).model.truncated.estimator


def test_every_option_reaches_the_estimator():
    made = estimator(
        scale=0.3, discount=0.4, estimator_hidden=(6,), context=("target", "input"), normalise=True,
        trace_decay=0.5, auxiliary=0.2, no_terminal_target=True, update_steps=4,
    )  # fmt: skip
    assert isinstance(made, SyntheticGradient)
    assert (made.scale, made.discount, made.context_size) == (0.3, 0.4, 3)
    assert (made.normalise, made.trace_decay, made.auxiliary) == (True, 0.5, 0.2)
    assert not made.terminal_target and not made.dense and estimator(dense=True).dense
    traced = estimator(estimator="bp-lambda", discount=0.4)
    assert isinstance(traced, BPLambda) and traced.trace.shape == (4, 8, 72)
    assert (traced.trace_decay, traced.discount) == (0.9, 0.4)
    assert estimator(estimator="bp-lambda", trace_decay=0.0).trace_decay == 0
    assert (traced.scale, estimator().discount) == (0.1, 0.1)
    solved = estimator(
        estimator="least-squares", forgetting=0.5, ridge=0.1, solve_every=2, context=("input",),
        trace_decay=0.5, update_steps=4,
    )  # fmt: skip
    assert isinstance(solved, LeastSquares) and (solved.scale, solved.discount) == (1, 0.9)
    assert (solved.forgetting, solved.ridge, solved.solve_every) == (0.5, 0.1, 2)
    assert (solved.context_size, solved.trace_decay, solved.dense) == (2, 0.5, False)
    assert estimator(estimator="least-squares", dense=True).dense
    true = estimator(estimator="true", lookahead=5)
    assert isinstance(true, TrueGradient) and (true.scale, true.discount) == (1, 1)
    assert true.lookahead == 3 and estimator(estimator="true", scale=0.5).scale == 0.5
    assert estimator(estimator="true", lookahead="sequence").lookahead is None


BAD = {
    "dense, traced": ("--dense --trace-decay 0.5 --update-steps 4", "dense targets have no trace"),
    "lambda of one": (
        "--trace-decay 0.5 --update-steps 2", "--trace-decay needs several .*--update-steps .*4"
    ),
    "lambda above 1": ("--trace-decay 1.5 --update-steps 4", "trace_decay must be at most 1"),
    "no next cut": ("--auxiliary 0.5 --update-steps 2", "--auxiliary needs several chunks"),
    "lambda of one, solved": (
        "--estimator least-squares --trace-decay 0.5 --update-steps 2", "several .*--update"
    ),
    "nothing solved": ("--ridge 0.1", "--ridge goes with --estimator least-squares only"),
    "no end of forgetting": ("--estimator least-squares --forgetting 1", "--forgetting must be below"),
    "nothing descends": ("--estimator least-squares --estimator-min-norm 1", "--estimator-min-norm goes"),
    "no estimator": ("--estimator none --dense", "--dense goes with --estimator .*dni"),
    "nothing to warm up": ("--estimator none --warm-up 5", "--warm-up goes with --estimator .*dni"),
    "no min norm": ("--estimator none --estimator-min-norm 1", "--estimator-min-norm goes with"),
    "traces of pieces": ("--estimator bp-lambda --micro-batch 2", "no --micro-batch"),
    "a large trace": ("--estimator bp-lambda --hidden 512", r"takes 17\.\d+ GB"),
    "widths of a trace": ("--estimator bp-lambda --estimator-hidden 3", "--estimator-hidden goes"),
    "lookahead alone": ("--fidelity-lookahead 8", "goes with --fidelity-every only"),
    "lookahead of what learns": ("--lookahead 8", "--lookahead goes with --estimator true only"),
    "the truth fitted": ("--estimator true --warm-up 3", "--warm-up goes with --estimator .*dni or"),
    "the truth in pieces": ("--estimator true --micro-batch 2", "micro_batch must be None"),
    "dropout foreseen": ("--estimator true --dropout 0.1", "dropout must be 0 with TrueGradient"),
    "the truth told more": ("--estimator true --context input", "--context goes with --estimator"),
    "no label": ("--context input label", "--context label: this task's sequences have none"),
    "another context": ("--context output", "invalid choice: 'output'"),
    "min norm above clip": ("--min-norm 2", "min_norm must be at most clip, 1.0; got 2.0"),
}  # fmt: skip


@pytest.mark.parametrize("words, message", BAD.values(), ids=BAD)
def test_what_does_nothing_is_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["train", "copy", *COPY, *words.split()], message)
    assert list(tmp_path.iterdir()) == []


def test_an_arm_of_a_comparison_gets_the_options_that_go_with_it(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(compare, "compare", lambda *arguments: asked.append(arguments) or [])
    words = ["compare", "copy", "--out", str(tmp_path), "--truncations", "2", *COPY[:4]]
    words += "--dense --warm-up 5 --estimator-hidden 3 --update-steps 16 --lookahead 8".split()
    assert main([*words, "--estimators", "none", "dni", "bp-lambda", "true"]) == 0
    ((_, runs, *_),) = asked
    plain, dni, traced, true = (run.options for run in runs)
    assert [str(one.estimator) for one in (plain, dni, traced, true)] == ["none", "dni", "bp-lambda", "true"]
    assert plain.warm_up == true.warm_up == 0 and dni.warm_up == traced.warm_up == 5
    assert (dni.dense, dni.estimator_hidden, true.lookahead) == (True, (3,), 8)
    assert not hasattr(traced, "dense") and not hasattr(dni, "lookahead")
    refused(capsys, [*words, "--estimators", "none", "true"], "--dense goes with --estimator .*dni or")


@given(value=st.sampled_from(sorted(ESTIMATORS)))
def test_another_estimator_keeps_what_goes_with_it_too(value):
    options = CopyOptions(scale=0.5, discount=0.2, warm_up=3, hidden=9, lr=0.1)
    other = options.but(estimator=value)
    assert (other.estimator.name, other.hidden, other.lr) == (value, 9, 0.1)
    assert getattr(other, "scale", 0.5) == 0.5 and getattr(other, "discount", 0.2) == 0.2
    assert other.warm_up == (3 if ESTIMATORS[value].fitted else 0)
    assert options.but(estimator="dni") == options


@pytest.mark.parametrize("words", [
    "--context input --normalise", "--context target input --estimator-hidden linear",
    "--dense --warm-up 3 --ramp 4",
    "--auxiliary 0.1 --trace-decay 0.5 --update-steps 4", "--estimator bp-lambda",
    "--update-steps sequence --auxiliary 0.1 --min-norm 0.1 --estimator-min-norm 0.01",
])  # fmt: skip
def test_trains_measures_and_says_so(words, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["--out", str(folder), "--updates", "12", "--fidelity-every", "20", *words.split()]
    assert main(["train", "copy", *COPY, *words]) == 0
    rows = read_log(folder / "log.jsonl", "fidelity")
    assert rows and all(-1 <= row["cosine"] <= 1 for row in rows)
    capsys.readouterr()
    assert main(["fidelity", str(folder), "--weights", "latest", "--lookahead", "6"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"latest model, update 12 of .*; \d+ boundaries", said), said
    assert said.count("against the true gradient of 6 steps at discount") == 2
    assert (folder / "fidelity.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("task, words", [
    ("copy", "--lookahead sequence"), ("repeat-copy", "--lookahead 3 --update-steps 4"),
    ("adding", "--length 9"), ("char-lm", "--lookahead 6 --embedding 4"),
    ("digits", "--lookahead sequence --period 2 --windows 2 --front 4"),
])  # fmt: skip
def test_the_truth_trains_and_resumes_to_the_bit(task, words, tmp_path, capsys):
    words = "--hidden 4 --batch 4 --truncation 2 --estimator true --log-every 8 --quiet".split() + [
        *words.split(), *("--bits 1 --max-length 3".split() if "copy" in task else [])
    ]  # fmt: skip
    words += ["--decay", "none"]
    if task == "char-lm":
        (tmp_path / "text").write_text("tick tock the clock\n" * 30)
        words += ["--corpus", str(tmp_path / "text")]
    for name, updates in (("run", 7), ("run", 30), ("whole", 30)):
        where = ["--out", str(tmp_path / name), "--updates", str(updates)]
        assert main(["train", task, *where, *words]) == 0
    (tensors, known), (other, expected) = (end_of(tmp_path / name) for name in ("run", "whole"))
    assert known["stream"] == expected["stream"]
    assert all(torch.equal(tensors[name], other[name]) for name in other)
    message = "no estimator to measure: .*--estimator true"
    refused(capsys, ["fidelity", str(tmp_path / "run")], message)
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_at_a_short_truncation_the_truth_learns_what_nothing_does_not(tmp_path):
    """Sequences of 3 and a delimiter, gradients carried back 2 steps."""
    solved = {}
    for name in ("none", "true"):
        options = CopyOptions(
            bits=1, hidden=32, truncation=2, lr=1e-2, batch=16, updates=600, start_length=3,
            estimator=name, seed=1,
        )  # fmt: skip
        task = build(options)
        config = trainer_config(options, task.symbols_per_update, copy.DECAY)
        trainer = Trainer(task.model, task.stream, config, tmp_path / name, test=task.test)
        # Without evaluations, the last model is the one that counts.
        solved[name] = trainer.run()["test"]["solved"]
    assert solved["none"] == 0 and solved["true"] >= 3


def test_fidelity_of_a_text(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("tick tock the clock\n" * 150)
    folder = tmp_path / "run"
    words = "--hidden 8 --embedding 4 --batch 4 --truncation 5 --updates 30 --quiet"
    words += " --estimator dni --context input"
    words += " --fidelity-every 100 --fidelity-lookahead 10"
    where = ["--corpus", str(path), "--out", str(folder)]
    assert main(["train", "char-lm", *where, *words.split()]) == 0
    rows = read_log(folder / "log.jsonl", "fidelity")
    assert [row["update"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert {row["boundaries"] for row in rows} == {16}
    assert main(["fidelity", str(folder)]) == 0


def test_a_run_without_an_estimator_has_nothing_to_measure(tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = ["--estimator", "none", "--updates", "2", "--out", folder]
    assert main(["train", "copy", *COPY, *words]) == 0
    refused(capsys, ["fidelity", folder], "no estimator to measure: .*--estimator none")


def test_its_words_are_read_back():
    options = CopyOptions(trace_decay=0.5, auxiliary=0.25, context=("input",), warm_up=3)
    words = " ".join(words_of(options))
    assert words == "--warm-up 3 --context input --trace-decay 0.5 --auxiliary 0.25"


@pytest.mark.parametrize("module, options", [
    (copy, dict(bits=1, truncation=3)), (repeat_copy, dict(bits=1, truncation=9)),
    (char_lm, dict(truncation=5)), (digits, dict(period=2)), (adding, dict(length=12)),
], ids=["copy", "repeat-copy", "char-lm", "digits", "adding"])  # fmt: skip
def test_a_task_measures_on_the_same_sequences_every_time(module, options):
    stretch = module.build(module.Options(hidden=4, batch=2, **options)).stretch
    one, other = stretch(10), stretch(10)
    assert one.first and torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_digits_are_measured_too(tmp_path):
    folder = tmp_path / "run"
    words = "--period 2 --windows 2 --hidden 4 --front 8 --batch 4 --updates 4 --context input --quiet"
    words += " --fidelity-every 1 --fidelity-lookahead 4"
    assert main(["train", "digits", "--out", str(folder), *words.split()]) == 0
    assert read_log(folder / "log.jsonl", "fidelity")
    assert main(["fidelity", str(folder), "--weights", "latest"]) == 0
