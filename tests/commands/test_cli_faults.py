"""What happens to a command line that is stopped, cut off or asked for the impossible."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import SHORT, TINY
from small_runs import make_trainer

from dnirnn.commands.cli import main
from dnirnn.training.trainer import Interrupted

WORDS = [*TINY, *SHORT, "--threads", "1"]


@pytest.fixture
def words(text, tmp_path) -> list[str]:
    """The words of a short run in tmp_path/run."""
    where = ["--corpus", str(text), "--out", str(tmp_path / "run")]
    return ["train", "char-lm", *where, *WORDS]


def process(words: list[str], **keywords) -> subprocess.Popen:
    command = [sys.executable, "-m", "dnirnn", *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, **keywords)


# Signals and pipes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_update_at_hand_and_is_the_exit_code(tmp_path, number, capsys):
    def press(row):
        if row["update"] == 8:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    trainer = make_trainer(tmp_path, updates=50)
    with pytest.raises(Interrupted, match="interrupted at update 8") as stopped:
        trainer.run(press)
    assert stopped.value.signal == number and signal.getsignal(number) is before
    assert (tmp_path / "checkpoints" / "update-00000008").is_dir()


def test_sigterm_ends_the_command_line_with_143_and_says_how_to_go_on(words, tmp_path):
    run = process([*words, "--updates", "1000000", "--quiet"], stderr=subprocess.PIPE)
    log = tmp_path / "run" / "log.jsonl"
    while run.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    run.terminate()
    said = run.communicate()[1].decode()
    assert run.returncode == 143, said
    assert "to go on from there: dnirnn train char-lm" in said and "Traceback" not in said


def test_a_closed_pipe_is_no_complaint():
    reading, writing = os.pipe()
    os.close(reading)
    run = process(["doctor"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert run.communicate()[1] == b"" and run.returncode == 141


def test_a_terminal_without_the_characters_is_told_their_numbers(words, tmp_path):
    out = tmp_path / "Über"
    words = [*words, "--out", str(out)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    run = process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    said, complained = run.communicate()
    assert run.returncode == 0, complained
    assert rb"\xdcber" in said and (out / "result.json").exists()


# Numbers without an answer


@pytest.mark.parametrize("hidden", ["10000000", "100000000000"])
def test_memory_that_is_not_there_is_one_line_with_the_figure(words, hidden, capsys):
    assert main([*words, "--hidden", hidden]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dnirnn: there is not enough memory: ") and said.count("\n") == 1
    assert "were asked for: make the network" in said


def test_the_smallest_temperature_takes_the_likeliest(words, tmp_path, capsys):
    assert main([*words, "--quiet"]) == 0
    capsys.readouterr()
    found = []
    for temperature in ("0", "1e-320", "1e-30"):
        sample = ["sample", str(tmp_path / "run"), "--length", "40", "--temperature", temperature]
        assert main(sample) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] == found[2]


def test_a_schedule_with_an_end_is_checked_against_the_budget(words, tmp_path, capsys):
    cycle = ["--schedule", "OneCycleLR", "--schedule-options", "max_lr=0.01", "total_steps=59"]
    assert main([*words, *cycle]) == 2
    said = capsys.readouterr().err
    assert "OneCycleLR ends after total_steps=59 updates" in said and "got 60" in said
    assert not (tmp_path / "run").exists()
    assert main([*words, *cycle[:-1], "total_steps=60", "--quiet"]) == 0


# Children


def test_a_module_of_the_working_folder_is_not_taken_for_another(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy.py").write_text("raise SystemExit('the wrong copy.py')\n")
    small = ["--corpus", str(text), *TINY, "--updates", "4", "--out", "both", "--quiet"]
    del small[small.index("--truncation") : small.index("--truncation") + 2]
    assert main(["compare", "char-lm", *small, "--truncations", "5", "--jobs", "1"]) == 0
    assert (tmp_path / "both" / "results.csv").exists()
