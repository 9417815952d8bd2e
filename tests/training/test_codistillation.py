"""Codistillation: workers that teach one another by old copies, and wait for nobody."""

import os
import signal
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from command_line import SHORT, TINY, refused
from small_runs import assert_equal_runs, make_model, make_trainer, rows_of, text

from dnirnn import codistillation as co
from dnirnn.commands.cli import main
from dnirnn.data import TextStream
from dnirnn.training.trainer import Interrupted, read_config

EVERY, BURN_IN = 3, 5


def worker(folder, number, store, workers=2, stop=None, **config):
    """A trainer that exchanges with the others through a store; stopped before update ``stop``."""
    model = make_model(seed=number, dropout=0.2)
    others = [one for one in range(workers) if one != number]
    model.loss = copies = co.Copies(model, others, 0.7, 2.0, BURN_IN)
    exchange = None if store is None else co.Exchange(store, number, workers)
    stream = co.CodistilledStream(TextStream(text(101, number), 4, 0), copies, exchange, EVERY)
    config = dict(updates=12, evaluate_every=4, log_every=1) | config
    trainer = make_trainer(folder, model=model, stream=stream, **config)

    def prepare(model, epochs):
        stream.before(trainer.update, model.state_dict)
        if trainer.update + 1 == stop:
            trainer.interrupt()

    trainer.prepare = prepare
    return trainer


# The exchange


@pytest.mark.parametrize("piece", [2**22, 7])
def test_what_one_gives_another_takes(monkeypatch, piece):
    monkeypatch.setattr(co, "PIECE", piece)
    store, model = dist.HashStore(), make_model("least-squares")
    mine, yours = co.Exchange(store, 0, 3), co.Exchange(store, 2, 3)
    assert yours.others == [0, 1] and yours.take(0) is None
    for update in (4, 8, 12):
        with torch.no_grad():
            model.readout.bias.add_(1)
        mine.give(update, model.state_dict())
        found, weights = yours.take(0)
        assert found == update and yours.take(0, update) is None and yours.take(1) is None
        for name, tensor in model.state_dict().items():
            assert torch.equal(weights[name], tensor), name


def test_weights_that_are_written_while_they_are_read_are_not_taken():
    store = dist.HashStore()
    mine, yours = co.Exchange(store, 0, 2), co.Exchange(store, 1, 2)
    mine.give(1, {"a": torch.zeros(9)})
    store.set("0/1/0", bytes(40))
    assert yours.take(0) is None
    mine.give(2, {"a": torch.ones(9)})
    assert yours.take(0)[0] == 2


def test_where_the_store_is_gone_a_worker_goes_on(tmp_path):
    class Gone:
        def set(self, *given):
            raise dist.DistNetworkError("Connection reset by peer")

    trainer = worker(tmp_path, 0, Gone())
    with pytest.warns(UserWarning, match=r"store is gone \(Connection reset by peer\)") as said:
        assert trainer.run()["update"] == 12
    assert len([one for one in said if "store is gone" in str(one.message)]) == 1
    with pytest.raises(ValueError, match="worker must be at least 0 and below 2; got 2"):
        co.Exchange(dist.HashStore(), 2, 2)


# The loss


def test_copies_teach_after_the_burn_in_and_are_the_mean_of_those_there_are(tmp_path):
    store = dist.HashStore()
    for number in (1, 2):
        co.Exchange(store, number, 4).give(7, make_model(seed=number).state_dict())
    trainer = worker(tmp_path, 0, store, workers=4)
    stream, seen = trainer.stream, []
    before, states = stream.stream.next, [make_model().initial_state(4)] * 2

    def following(steps):
        seen.append(before(steps))
        return seen[-1]

    stream.stream.next = following
    for update in range(9):
        stream.before(update, trainer.model.state_dict)
        batch = stream.next(3)
        if update < BURN_IN:
            assert batch.soft is None
            continue
        expected = []
        for i, number in enumerate((1, 2)):
            teacher = make_model(seed=number).eval()
            logits, states[i] = teacher.unroll(seen[-1].x, states[i], 0)
            expected.append(torch.softmax(logits / 2.0, -1))
        torch.testing.assert_close(batch.soft, sum(expected) / 2, rtol=1e-5, atol=1e-6)
        if batch.final:
            states = [make_model().initial_state(4)] * 2
    assert stream.distillation.updates() == {1: 7, 2: 7}, "worker 3 is not there, and none waits for it"


def test_alone_a_worker_is_a_plain_run_on_its_share(tmp_path):
    worker(tmp_path / "worker", 0, dist.HashStore()).run()
    plain = make_trainer(
        tmp_path / "plain", model=make_model(seed=0, dropout=0.2), stream=TextStream(text(101, 0), 4, 0),
        updates=12, evaluate_every=4, log_every=1,
    )  # fmt: skip
    plain.run()
    assert rows_of(tmp_path / "worker") == rows_of(tmp_path / "plain")


def test_shares_are_the_whole_text():
    symbols = torch.arange(23)
    assert torch.equal(torch.cat([co.share_of(symbols, n, 4) for n in range(4)]), symbols)


# Resuming


def test_a_resumed_worker_has_its_copies_and_is_the_uninterrupted_one(tmp_path):
    """Though the other one died, and the store has nothing any more."""
    store = dist.HashStore()
    worker(tmp_path / "other", 1, store, updates=10).run()
    whole = worker(tmp_path / "whole", 0, store)
    whole.run()
    assert whole.stream.distillation.updates() == {1: 9}
    assert rows_of(tmp_path / "whole") != rows_of(tmp_path / "other")
    with pytest.raises(Interrupted):
        worker(tmp_path / "run", 0, store, stop=8).run()
    resumed = worker(tmp_path / "run", 0, dist.HashStore())
    resumed.run()
    assert resumed.stream.distillation.updates() == {1: 9}
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


# The command line


def started(folder, number, environment, words, killed_at=None):
    """A worker in a fork of this process."""

    def work():
        os.environ.update(environment, RANK=str(number))
        torch.set_num_threads(1)
        if killed_at is not None:
            before = co.CodistilledStream.before

            def counted(self, update, weights):
                before(self, update, weights)
                if update == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)

            co.CodistilledStream.before = counted
        sys.stdout = sys.stderr = open(folder / f"said-{number}", "w")
        code = main(words)
        sys.stdout.flush()
        os._exit(code)

    process = mp.get_context("fork").Process(target=work)
    process.start()
    return process


def test_workers_of_the_command_line(tmp_path, capsys):
    """One is killed: the other goes on; started again, it goes on from where it was."""
    (tmp_path / "tiny.txt").write_text("tick tock the clock\n" * 150)
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    where = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), WORLD_SIZE="2")
    where["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    words = ["train", "char-lm", "--corpus", str(tmp_path / "tiny.txt"), *TINY, *SHORT, "--codistill"]
    words += ["--exchange-every", "5", "--burn-in", "8", "--estimator", "dni", "--quiet"]
    words += ["--out", str(tmp_path / "run")]
    first = started(tmp_path, 1, where, [*words, "--checkpoint-seconds", "0.001"], killed_at=21)
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    other = started(tmp_path, 0, where, words)
    other.join(60)
    assert other.exitcode == 0, (tmp_path / "said-0").read_text()
    assert "worker 0 of 2, on its share of train" in (tmp_path / "said-0").read_text()
    again = started(tmp_path, 1, where, words)
    again.join(60)
    assert again.exitcode == 0, (tmp_path / "said-1").read_text()
    for number in (0, 1):
        config = read_config(tmp_path / "run" / f"worker-{number}")
        assert (config["worker"], config["workers"]) == (number, 2)
    rows = [[r["bits"] for r in rows_of(tmp_path / "run" / f"worker-{n}")] for n in (0, 1)]
    assert rows[0] != rows[1]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run" / "worker-1")]) == 0
    assert main(["fidelity", str(tmp_path / "run" / "worker-1"), "--lookahead", "5"]) == 0


def test_what_is_refused(capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    train = ["train", "char-lm"]
    refused(capsys, [*train, "--codistill"], "--codistill needs several workers: start it with torchrun")
    refused(capsys, [*train, "--burn-in", "3"], "--burn-in goes with --codistill only; got 3")
    both = [*train, "--codistill", "--smoothing", "0.1"]
    refused(capsys, both, "--teachers, --codistill and --smoothing are one or the other")
    words = [*train, "--codistill", "--worker", "2", "--workers", "2"]
    refused(capsys, words, "--worker and --workers are given together, the first below the second")


