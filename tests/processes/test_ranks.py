"""The trainer over several processes: they are one, and lose nothing where one is killed. Gloo."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rank_runs import LOST, STOPPED, codes_of, free_port, kill_at, resumable, run
from small_runs import Recall, assert_equal_runs, end_of, make_model, make_trainer, rows_of, text

import dnirnn
from dnirnn.commands.cli import main
from dnirnn.data import TextStream
from dnirnn.distributed import Ranks
from dnirnn.training.checkpoint import checkpoints
from dnirnn.training.trainer import Interrupted

ROWS = 6


def streams() -> dict:
    # 203 symbols are no multiple of 6: the last rows are shorter.
    return {"text": TextStream(text(), ROWS, 0), "drawn": Recall(ROWS)}


def double(folder, stream: str, estimator: str, ranks: Ranks, **config):
    """A run in float64."""
    common = dict(updates=15, evaluate_every=5, checkpoint_every=5, chunks=2, clip=0.05)
    model = make_model(estimator).double()
    return make_trainer(
        folder, model=model, stream=streams()[stream], ranks=ranks, **common | config
    )


CASES = {
    "text": ("text", "dni", {}),
    "text, solved": ("text", "least-squares", {}),
    "drawn, pieces": ("drawn", "dni", dict(micro_batch=1, decay="cosine")),
    "drawn, sequences": ("drawn", "none", dict(chunks="sequence")),
}


def all_cases(folder: Path):
    def work(ranks: Ranks) -> None:
        for name, (stream, estimator, config) in CASES.items():
            double(folder / name, stream, estimator, ranks, **config).run()

    return work


def assert_close_rows(folder, reference, tolerance: float) -> None:
    for row, expected in zip(rows_of(folder), rows_of(reference), strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            same = pytest.approx(value, rel=tolerance) if isinstance(value, float) else value
            assert row[name] == same, name


def assert_close_runs(folder, reference) -> None:
    """The same to 1e-12 of all that checkpoints and logs hold, but for the random numbers."""
    assert_close_rows(folder, reference, 1e-12)
    (tensors, state), (expected, expected_state) = end_of(folder), end_of(reference)
    for name in ("update", "symbols", "t", "epochs"):
        assert state[name] == expected_state[name]
    told, expected_told = (one["stream"].pop("told", []) for one in (state, expected_state))
    assert told == pytest.approx(expected_told, rel=1e-12)
    assert state["stream"] == expected_state["stream"]
    for name, tensor in expected.items():
        if not name.startswith("rng"):
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-12, atol=1e-12, msg=name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    all_cases(folder)(Ranks())
    return folder


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_are_one_process(ranks, tmp_path, one_process):
    run(ranks, all_cases(tmp_path))
    for name in CASES:
        assert_close_runs(tmp_path / name, one_process / name)


def test_another_number_of_ranks_goes_on_and_says_so(tmp_path, one_process):
    def part(end: int):
        def work(ranks: Ranks) -> list[str]:
            trainer = double(tmp_path, "text", "dni", ranks)
            learn = trainer.learn

            def learn_on():
                learn()
                if trainer.update == end:
                    trainer.interrupt()
                    trainer.agree()

            trainer.learn = learn_on
            with warnings.catch_warnings(record=True) as said, suppress(Interrupted):
                warnings.simplefilter("always")
                trainer.run()
            return [str(one.message) for one in said]

        return work

    assert run(2, part(4)) == [[], []]
    (first, *others) = run(3, part(11))
    assert ["2 processes and goes on with 3" in one for one in first] == [True]
    assert others == [[], []]
    assert ["3 processes and goes on with 1" in one for one in part(99)(Ranks())] == [True]
    assert_close_runs(tmp_path, one_process / "text")


# One that is killed


def trials(seed=0) -> list[tuple[int, int, str, int]]:
    """(ranks, the one that is killed, the function and its call at which it is)."""
    draw = random.Random(seed)
    found = []
    for ranks in (2, 3):
        for function, calls in (("next", 26), ("all_reduce", 60), ("broadcast_object_list", 15)):
            found.append((ranks, draw.randrange(ranks), function, draw.randint(2, calls)))
    return [*found, (2, 0, "fsync", draw.randint(2, 40))]


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for ranks in (2, 3):
        run(ranks, lambda r: resumable(folder / str(r.size), r).run() and None)
    return folder


@pytest.mark.parametrize("ranks, victim, function, call", trials())
def test_a_killed_rank_loses_nothing(ranks, victim, function, call, references, tmp_path):
    def live(together: Ranks) -> None:
        if together.rank == victim:
            kill_at(function, call)
        resumable(tmp_path, together).run()

    codes = codes_of(ranks, live)
    assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(ranks)]
    run(ranks, lambda together: resumable(tmp_path, together).run() and None)
    assert_equal_runs(tmp_path, references / str(ranks))


# None stops alone


def test_clocks_that_differ_end_all_at_one_update(tmp_path):
    def work(ranks: Ranks) -> int:
        clock, rate = time.perf_counter, 1 + 3 * ranks.rank
        time.perf_counter = lambda: rate * clock()
        trainer = double(tmp_path, "text", "dni", ranks, updates=None, minutes=0.002, decay="linear")
        return trainer.run()["update"]

    first, *others = run(2, work)
    assert others == [first]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_and_saves_all(rank, tmp_path):
    def work(ranks: Ranks) -> None:
        trainer = double(tmp_path, "text", "dni", ranks)
        learn = trainer.learn

        def learn_and_press():
            if trainer.update == 7 and ranks.rank == rank:
                os.kill(os.getpid(), signal.SIGTERM)
            learn()

        trainer.learn = learn_and_press
        trainer.run()

    assert codes_of(2, work) == [STOPPED, STOPPED]
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "update-00000008"


def test_what_the_first_one_can_t_do_stops_all_with_its_words(tmp_path):
    def work(ranks: Ranks) -> str:
        trainer = double(tmp_path, "text", "dni", ranks)

        def fail(state):
            raise OSError("no space left")

        trainer.saver.write = fail
        with pytest.raises((OSError, RuntimeError)) as caught:
            trainer.run()
        return [type(caught.value).__name__, str(caught.value)]

    assert run(2, work) == [
        ["OSError", "no space left"], ["RankLost", "rank 0 stopped this run: OSError: no space left"]
    ]  # fmt: skip


def test_what_can_t_be_shared_is_refused_by_name(tmp_path):
    def work(ranks: Ranks) -> list[str]:
        said = []
        normed = make_model()
        normed.readout = torch.nn.Sequential(torch.nn.BatchNorm1d(5), normed.readout)
        traced = make_model()
        traced.truncated = dnirnn.Truncated(traced.truncated.core, 3, dnirnn.BPLambda(10, 6))
        for model, rows in ((None, 5), (normed, 6), (traced, 6)):
            with pytest.raises(ValueError) as caught:
                make_trainer(
                    tmp_path, model=model, stream=TextStream(text(), rows, 0), updates=1, ranks=ranks
                )
            said.append(str(caught.value))
        with pytest.raises(ValueError) as caught:
            double(tmp_path, "text", "dni", ranks, updates=2 + ranks.rank).run()
        return [*said, str(caught.value)]

    one, (rows, normed, traced, options) = run(2, work)
    assert one == [rows, normed, traced, options]
    assert rows == "the batch size must be a multiple of 2, the ranks that share it; got 5"
    assert normed.startswith("BatchNorm1d (readout.0) normalises by the rows of its own process")
    assert traced.startswith("BPLambda keeps a trace")
    assert options == "every rank of a run must be given the same options"


# The command line


def words(folder, *more: str) -> list[str]:
    said = "train char-lm --hidden 8 --batch 4 --truncation 4 --symbols 960 --evaluate-every 480"
    said += " --log-every 160 --estimator dni --estimator-hidden linear --quiet"
    return [*said.split(), "--corpus", str(folder / "text"), "--out", str(folder / more[0]), *more[1:]]


def test_torchrun(tmp_path, capfd):
    (tmp_path / "text").write_text("Nothing is lost where one of them ends. " * 60)
    paths = os.pathsep.join(path for path in sys.path if path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    port = f"--master-port={free_port()}"
    done = subprocess.run(
        [*torchrun, port, "-m", "dnirnn", *words(tmp_path, "two")],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stopped by symbols") == 1
    assert main(words(tmp_path, "one", "--threads", "1")) == 0
    assert_close_rows(tmp_path / "two", tmp_path / "one", 1e-3)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["symbols"] == results[1]["symbols"]


def test_a_device_with_a_number_is_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "text").write_text("Nothing is lost where one of them ends. " * 60)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words(tmp_path, "three", "--device", "cuda:1")) == 2
    said = capsys.readouterr().err
    assert "rank 1: device must be cpu or cuda with several ranks, one GPU each; got cuda:1" in said
