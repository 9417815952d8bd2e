"""The command line end to end on tiny text: what it prints, leaves behind, refuses and resumes."""

import json
import os
import re
import signal

import pytest
from command_line import SHORT, TINY, refused
from hypothesis import given as drawn
from hypothesis import strategies as st
from small_runs import rows_of

from dnirnn.commands import cli, demo, training
from dnirnn.commands.cli import main
from dnirnn.config.arguments import given
from dnirnn.groups import every_option, flat
from dnirnn.options import flag
from dnirnn.reports.report import words_of
from dnirnn.tasks.char_lm import CharLMOptions
from dnirnn.training.log import read_log


@pytest.fixture
def train(text, tmp_path):
    """train(*more words) runs it in tmp_path/run; its exit code."""

    def run(*words: str, out: str = "run") -> int:
        where = ["--corpus", str(text), "--out", str(tmp_path / out)]
        return main(["train", "char-lm", *where, *TINY, *SHORT, *words])

    return run


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A run that has learned the text by heart."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["--corpus", str(text), "--out", str(folder), *TINY, *SHORT, "--updates", "300"]
    assert main(["train", "char-lm", *words, "--hidden", "32", "--lr", "0.02"]) == 0
    return folder


# train


def test_train_prints_its_figures_with_their_convention(train, tmp_path, capsys):
    assert train() == 0
    said = capsys.readouterr().out
    counts = "1,080 / 60 / 60 symbols in train / valid / test (every character of the file"
    assert said.count(counts) == 2
    assert "stopped by updates after 60 updates, 1,200 characters" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"test, bits per character: {result['test']['test_bits']:.4f}" in said
    assert f"validation, bits per character: {result['best']['bits']:.4f}" in said


def test_it_learns(trained):
    result = json.loads((trained / "result.json").read_text())
    assert result["test"]["test_bits"] < 0.5


def test_a_run_that_is_done_says_its_figures_again(train, tmp_path, capsys):
    assert train() == 0
    first, log = capsys.readouterr().out, rows_of(tmp_path / "run")
    assert train() == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-3:] == first.splitlines()[-3:]
    assert rows_of(tmp_path / "run") == log


def test_a_larger_budget_goes_on_where_the_run_ended(train, tmp_path):
    """With a rate that does not follow the budget, it is the run that had it all at once."""
    assert train("--decay", "none", "--updates", "30") == 0
    assert train("--decay", "none") == 0
    assert train("--decay", "none", out="whole") == 0
    halves, whole = rows_of(tmp_path / "run"), rows_of(tmp_path / "whole")
    assert halves[-1] == whole[-1] and halves[-1]["update"] == 60


def test_ctrl_c_saves_and_says_how_to_go_on(train, tmp_path, capsys, monkeypatch):
    show = training.RunProgress.__call__

    def press(self, row):
        show(self, row)
        if row["update"] == 25:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training.RunProgress, "__call__", press)
    assert train("--seed", "3") == 130
    said = capsys.readouterr().err
    assert "to go on from there: dnirnn train char-lm --corpus" in said and "--seed 3" in said
    assert "Traceback" not in said
    assert max(row["update"] for row in rows_of(tmp_path / "run")) == 25

    monkeypatch.setattr(training.RunProgress, "__call__", show)
    assert train("--seed", "3") == 0
    assert train("--seed", "3", out="whole") == 0
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")


def test_the_default_folder_names_the_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "char-lm", "--corpus", str(text), *TINY, "--updates", "2", "--quiet"]
    assert main([*words, "--estimator", "none", "--seed", "4"]) == 0
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["char-lm-tiny-lstm8-T5-none-seed4"]


def test_every_training_option_reaches_the_trainer(train, tmp_path):
    words = "--optimizer SGD --optimizer-options momentum=0.9 --lr 0.1 --clip 0 --estimator-clip 1"
    words += " --schedule CosineAnnealingLR --schedule-options T_max=60 eta_min=0.01 --dropout 0.1"
    words += " --estimator dni --estimator-optimizer Adam --estimator-optimizer-options betas=(0.8,0.9)"
    words += " --micro-batch 2 --update-steps 10 --patience 3 --tensorboard --dtype bfloat16"
    assert train(*words.split()) == 0
    rates = [row["lr"] for row in read_log(tmp_path / "run" / "log.jsonl", "train")]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.01)
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_run_that_diverges_says_where(train, capsys):
    assert train("--optimizer", "SGD", "--lr", "1e30", "--clip", "0", "--quiet") == 1
    said = capsys.readouterr().err
    assert re.search(r"update \d+: the .* (nan|inf)", said) and said.count("\n") == 1


def test_another_number_of_threads_is_a_warning_of_one_line(train, capsys):
    assert train("--updates", "5", "--quiet", "--threads", "1") == 0
    assert train("--updates", "9", "--quiet", "--threads", "2") == 0
    said = capsys.readouterr().err
    assert re.fullmatch(r"dnirnn: warning: this run began with 1 threads[^\n]+\n", said), said


def test_copy_trains_and_is_measured(tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = "--bits 1 --hidden 8 --batch 4 --truncation 3 --updates 30 --max-length 3".split()
    assert main(["train", "copy", "--out", folder, *words]) == 0
    said = capsys.readouterr().out
    assert "longest length solved: 0.0" in said and "vectors of 1 bits, lengths 1 to 3" in said
    assert main(["eval", folder]) == 0
    assert re.search(r"error by length, bits per bit: 1: \d.*, 3: \d", capsys.readouterr().out)


# eval and sample


def test_eval_says_the_figures_that_training_said(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    expected = {"test": result["test"]["test_bits"], "valid": result["best"]["bits"]}
    for split, bits in expected.items():
        assert main(["eval", str(trained), "--split", split]) == 0
        said = capsys.readouterr().out
        assert f"{split}, bits per character: {bits:.4f}" in said
        assert "60 symbols (every character of the file" in said
        assert f"update {result['best']['update']:,}" in said


def test_eval_finds_a_text_that_was_moved_and_refuses_another(trained, text, tmp_path, capsys):
    (tmp_path / "moved").write_text(text.read_text())
    (tmp_path / "other").write_text(text.read_text().replace("tock", "tick"))
    assert main(["eval", str(trained), "--corpus", str(tmp_path / "moved")]) == 0
    other = ["eval", str(trained), "--corpus", str(tmp_path / "other")]
    refused(capsys, other, "not the text that the run was trained on")


def test_eval_takes_another_text_and_counts_what_it_has_no_symbol_for(trained, tmp_path, capsys):
    (tmp_path / "known").write_text("tock tick\n" * 9)
    (tmp_path / "other").write_text("tock tîck\n" * 9)
    for name, symbols in (("known", 90), ("other", 81)):
        assert main(["eval", str(trained), "--text", str(tmp_path / name)]) == 0
        said = capsys.readouterr().out
        assert f"{name}, bits per character: " in said and f"{name}: {symbols} symbols" in said
        assert ("9 characters of 90 are left out" in said) == (name == "other")
    refused(capsys, ["eval", str(trained), "--text", "nowhere"], "--text .*no file nowhere")
    both = ["eval", str(trained), "--text", str(tmp_path / "known"), "--split", "test"]
    refused(capsys, both, "--split .*--text")


def test_a_run_with_unknown_characters_says_their_bits_apart(train, tmp_path, capsys):
    (tmp_path / "test").write_text("tick tock the clöck\n" * 30)
    assert train("--test-file", str(tmp_path / "test"), "--quiet") == 0
    assert "one unknown symbol, scored apart" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "and 30 characters unknown to the training text, at" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test"]["test_unknown"] == 30 and result["best"]["unknown"] == 0
    assert main(["sample", str(tmp_path / "run"), "--length", "9"]) == 0


def test_sample_writes_what_was_learned(trained, capsys):
    words = ["--length", "40", "--prime", "tick tock", "--temperature", "0.3"]
    assert main(["sample", str(trained), *words]) == 0
    wrote = capsys.readouterr()
    assert wrote.out.startswith("tick tock the clock\ntick tock the clock\n")
    assert len(wrote.out) == len("tick tock") + 40 + 1  # nothing but the text and a newline
    assert re.fullmatch(r"40 characters in \d+\.\d\d s, [\d,]+ characters a second\n", wrote.err)


def test_a_flipped_bit_is_refused(train, tmp_path, capsys):
    assert train() == 0
    tensors = max((tmp_path / "run" / "best").glob("*/tensors.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    refused(capsys, ["eval", str(tmp_path / "run")], "tensors.safetensors")
    refused(capsys, ["sample", str(tmp_path / "run")], "tensors.safetensors")


# Bad input


def test_another_configuration_is_refused_and_nothing_touched(train, tmp_path, capsys):
    assert train() == 0
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    capsys.readouterr()
    assert train("--lr", "0.5", "--hidden", "9") == 2
    said = capsys.readouterr().err
    assert "hidden (8 there, 9 here)" in said and "lr (0.002 there, 0.5 here)" in said
    assert files == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


BAD = {
    "no command": ([], "required: COMMAND"),
    "no task": (["train"], "required: TASK .see dnirnn train --help"),
    "another task": (["train", "chess"], "invalid choice: 'chess'"),
    "unknown option": (["train", "copy", "--hiden", "3"], "unrecognized arguments: --hiden"),
    "abbreviated option": (["train", "copy", "--hid", "3"], "unrecognized arguments: --hid"),
    "no number": (["train", "copy", "--hidden", "x"], "--hidden: invalid int value: 'x'"),
    "truncation 0": (["train", "copy", "--truncation", "0"], "--truncation must be at least 1"),
    "negative rate": (["train", "copy", "--lr", "-1"], "--lr must be above 0; got -1"),
    "infinite scale": (["train", "copy", "--scale", "inf"], "--scale must be finite"),
    "dropout 1": (["train", "copy", "--dropout", "1"], "--dropout must be below 1; got 1.0"),
    "widths": (["train", "copy", "--estimator-hidden", "wide"], "--estimator-hidden.*'wide'"),
    "no equals": (["train", "copy", "--optimizer-options", "b"], "must be KEY=VALUE; got 'b'"),
    "optimizer": (["train", "copy", "--optimizer", "Eve"], "optimizer .*'Eve'"),
    "its options": (["train", "copy", "--optimizer-options", "z=1"], "options do not fit Adam"),
    "schedule": (["train", "copy", "--schedule", "Never"], "schedule .*'Never'"),
    "micro-batch": (["train", "copy", "--micro-batch", "3"], "micro_batch must divide"),
    "no text": (["train", "char-lm", "--corpus", "nowhere"], "--corpus .*nowhere"),
    "no data": (["train", "char-lm", "--corpus", "ptb", "--data-dir", "nowhere"], "--data-dir"),
    "no hub": (["train", "char-lm", "--corpus", "ptb"], "pass --data-dir"),
    "eval of nothing": (["eval", "nowhere"], "nowhere is not a run folder"),
    "sample of nothing": (["sample", "nowhere"], "nowhere is not a run folder"),
    "jobs 0": (["compare", "char-lm", "--jobs", "0"], "--jobs must be at least 1; got 0"),
    "arms": (["compare", "copy", "--lrs", "9=1"], "--lrs gives a rate for 9"),
    "rates": (["compare", "copy", "--lrs", "fast"], "ARM=RATE, such as .*; got 'fast'"),
    "truncations": (["compare", "copy", "--truncations", "0"], "--truncation must be at least 1"),
}


@pytest.mark.parametrize("argv, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_leaves_nothing(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refuse = ConnectionError("offline")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(refuse))
    refused(capsys, argv, message)
    assert list(tmp_path.iterdir()) == []


def test_a_truncation_longer_than_the_text_allows(train, capsys, tmp_path):
    assert train("--truncation", "700") == 2
    assert "1,080 training symbols; 4 sequences of 700 steps need 2,800" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sample_and_eval_refuse_what_a_copy_run_has_not(tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = "--bits 1 --hidden 4 --batch 2 --truncation 3 --updates 2 --max-length 2 --quiet"
    assert main(["train", "copy", "--out", folder, *words.split()]) == 0
    refused(capsys, ["sample", folder], "sample needs a char-lm run")
    refused(capsys, ["eval", folder, "--split", "test"], "--split goes with char-lm and word-lm and digits and images runs")


def test_a_folder_that_can_not_be_written(train, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert train(out="file/run") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "file" in said
    assert (tmp_path / "file").read_text() == "not a folder"


# demo


@pytest.mark.parametrize("jobs", [1, 2, 4, 6])
def test_the_demo_keeps_to_its_minutes(jobs, monkeypatch, tmp_path):
    asked = []
    trained = []
    monkeypatch.setattr(demo.compare, "compare", lambda *arguments: asked.append(arguments) or [])
    monkeypatch.setattr(demo.training, "train", lambda *arguments: trained.append(arguments))
    monkeypatch.setattr(demo.sample, "sample", lambda *arguments: None)
    assert main(["demo", "--out", str(tmp_path), "--jobs", str(jobs), "--minutes", "3"]) == 0
    ((task, runs, folder, at_once, _),) = asked
    assert (task, folder, at_once) == ("copy", tmp_path / "copy", jobs)
    assert [run.options.estimator.name for run in runs] == ["none", "least-squares"]
    assert {run.options.truncation for run in runs} == {4}
    rounds = -(-len(runs) // jobs)
    copying = rounds * (runs[0].options.minutes + demo.STARTING)
    ((task, text, _),) = trained
    assert (task, text.corpus) == ("char-lm", "builtin")
    assert copying + text.minutes + demo.STARTING < 3


# Options


def shown(argv: list[str], capsys) -> dict[str, str]:
    """What --help says of each flag."""
    assert main([*argv, "--help"]) == 0
    # An option's text goes from its flag, two columns in, to the next one's.
    entries = re.split(r"\n  (?=-)", capsys.readouterr().out.split("\noptions:", 1)[1])
    return {entry.split()[0]: " ".join(entry.split()) for entry in entries if entry.strip()}


@pytest.mark.parametrize("name", training.TASKS)
def test_help_has_every_option_with_its_default(name, capsys):
    kind = training.TASKS[name].Options
    said, known = shown(["train", name], capsys), every_option(kind)
    for option in flat(kind()):
        assert known[option][0].type is bool or "(default: " in said[flag(option)]


def test_help_has_the_options_of_what_is_chosen(capsys):
    said = shown(["train", "char-lm", "--core", "skip", "--estimator=none"], capsys)
    assert {"--skip-cost", "--layers", "--hidden", "--lr"} <= said.keys()
    assert not {"--periods", "--weight-drop", "--dense", "--estimator-lr"} & said.keys()
    assert "hm-lstm, LSTMs that tick" in said["--core"]
    compared = shown(["compare", "copy", "--vary", "core", "skip", "dilated"], capsys)
    assert {"--skip-cost", "--dilations", "--dense"} <= compared.keys()


@drawn(
    hidden=st.integers(1, 999),
    lr=st.floats(1e-9, 10),
    minutes=st.none() | st.floats(0.01, 99),
    widths=st.just(("linear",)) | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    options=st.just(()) | st.just((("betas", (0.8, 0.9)), ("eps", 1e-5), ("mode", "min"))),
    steps=st.none() | st.just("sequence") | st.integers(1, 99),
    quiet=st.booleans(),
)
def test_options_written_as_words_are_read_as_they_were(
    hidden, lr, minutes, widths, options, steps, quiet
):
    given_options = CharLMOptions(
        corpus="a file", hidden=hidden, lr=lr, minutes=minutes, estimator="dni",
        estimator_hidden=widths, optimizer_options=options, update_steps=steps, quiet=quiet,
    )
    words = ["train", "char-lm", *words_of(given_options)]
    arguments = cli.parser(words).parse_args(words)
    assert CharLMOptions(**given(arguments)) == given_options
