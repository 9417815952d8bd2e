"""make gpu: what it asks of the machine, what it does in which order, and what it leaves behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
RESULT = {"seconds": 300.0, "symbols": 6_000_000, "best": {"bits": 1.5}, "test": {"test_bits": 1.25}}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Programs that are noted and not run; what they would have left, left. fail: what fails."""
    ran, fail = [], set()

    def run(words, log, limit, **more):
        assert 0 < limit < 600
        ran.append(list(words))
        log.write_text("said\n")
        if fail & {*words, log.name}:
            raise gpu.Failed(f"exit code 1: {log}")
        if "train" in words:
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(RESULT))
        if words[2:4] == ["benchmarks", "cuda"]:
            Path(words[words.index("--out") + 1]).write_text(json.dumps({"cuda": {"step": []}}))
        return "3 passed\n"

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "built_for_cuda", lambda: "with the CUDA kernels")
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path=None: f"/bin/{name}")
    run.ran, run.fail = ran, fail
    data = tmp_path / "data"
    data.mkdir()
    (data / "ptb.train.txt").write_text("a")
    run.words = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--data", str(data)]
    return run


def summary(tmp_path):
    return json.loads((tmp_path / "out" / "summary.json").read_text())


def test_it_builds_tests_measures_and_compares(machine, tmp_path):
    assert gpu.main(machine.words) == 0
    assert [step["state"] for step in summary(tmp_path).values()] == ["done"] * 7
    said = [" ".join(words) for words in machine.ran]
    marks = ["/bin/nvcc", "on_chip", "build_ext", "doctor", "-m cuda", "--no-graphs", "train char-lm", "memcheck",
             "racecheck", "benchmarks cuda"]
    arms = ["--truncation 8 --estimator none", "--truncation 40 --estimator none",
            "--truncation 8 --estimator dni"]  # fmt: skip
    assert "--no-graphs" not in said[6]
    assert all(mark in words for mark, words in zip(marks + arms, said, strict=True))
    assert all("--lr 5e-4 --decay none --evaluate-every 20000000 --minutes 5.0 --device cuda" in words for words in said[-3:])
    rows = json.loads((tmp_path / "out" / "ptb.json").read_text())
    assert [(row["truncation"], row["estimator"]) for row in rows] == [arm[:2] for arm in gpu.ARMS]
    assert rows[2]["characters_per_second"] == 20_000 and rows[2]["test_bits"] == 1.25
    table = (tmp_path / "out" / "ptb.txt").read_text()
    assert table.count("1.2500") == 3 and "20,000" in table


def test_a_step_that_fails_is_named_and_the_others_go_on(machine, tmp_path, capsys):
    machine.fail.add("laws.txt")
    assert gpu.main([*machine.words, "--minutes", "0.5"]) == 1
    states = {name: step["state"] for name, step in summary(tmp_path).items()}
    assert states == {**dict.fromkeys(gpu.STEPS, "done"), "laws": "failed"}
    assert "laws: failed, exit code 1:" in capsys.readouterr().out


def test_without_the_corpus_or_the_sanitizer_these_are_skipped(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name, path=None: None)
    assert gpu.main(machine.words[:4]) == 0
    states = {name: step["state"] for name, step in summary(tmp_path).items()}
    assert states == {
        name: "skipped" if name in ("kernels", "sanitizer", "ptb") else "done" for name in gpu.STEPS
    }


def test_packages_that_are_missing_are_named_with_what_to_do(machine, tmp_path, monkeypatch):
    find = gpu.importlib.util.find_spec
    monkeypatch.setattr(
        gpu.importlib.util, "find_spec", lambda name: None if name == "hypothesis" else find(name)
    )
    assert gpu.main(machine.words) == 1
    found = summary(tmp_path)
    assert [name for name in found if found[name]["state"] == "failed"] == ["laws", "sanitizer"]
    assert "has no hypothesis:" in found["laws"]["outcome"]
    assert "pip install --no-index --find-links wheels hypothesis" in found["laws"]["outcome"]


@pytest.mark.parametrize("words, says", [
    (["--minutes", "0"], "--minutes must be above 0; got 0.0"),
    (["--data", "/nowhere"], "--data must hold ptb.train.txt"),
    (["--only", "everything"], "invalid choice: 'everything'"),
])  # fmt: skip
def test_bad_words_cost_nothing(machine, tmp_path, capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        gpu.main([*machine.words[:4], *words])
    assert stopped.value.code == 2 and says in capsys.readouterr().err
    assert not machine.ran and not (tmp_path / "out").exists()


def test_a_program_s_words_go_to_the_log_and_its_failure_is_told(tmp_path):
    log = tmp_path / "log.txt"
    assert gpu.run([sys.executable, "-c", "print(7)"], log, 60) == "7\n" == log.read_text()
    with pytest.raises(gpu.Failed, match=f"exit code 3: {log}"):
        gpu.run([sys.executable, "-c", "raise SystemExit(3)"], log, 60)


def test_a_program_that_hangs_is_ended_with_what_it_started_and_its_words_stay(tmp_path):
    log, began = tmp_path / "log.txt", time.monotonic()
    words = ["sh", "-c", "echo begun; sleep 600 & wait"]
    with pytest.raises(gpu.Failed, match=f"took longer than 0.5 s: {log}"):
        gpu.run(words, log, 0.5)
    assert log.read_text() == "begun\n" and time.monotonic() - began < 60


def test_what_ends_it_ends_the_program_that_it_runs(tmp_path):
    """As `timeout` would: what goes on computing would be in the figures of whoever comes next."""
    words = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks import gpu; import pathlib;" \
        " import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143));" \
        f" gpu.run(['sh', '-c', 'echo $$; exec sleep 600'], pathlib.Path({str(tmp_path / 'log')!r}), 600)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.terminate()
        assert process.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_make_gpu_uses_the_python_that_it_is_given_and_makes_no_environment():
    words = ["make", "-n", "gpu", "PYTHON=/opt/python", "DATA=/some where"]
    # As from a shell: make test runs this in a make of its own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    env.pop("MFLAGS", None)
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    said = done.stdout
    assert said.split("\n") == ['/opt/python -m benchmarks.gpu --data "/some where"', ""]
