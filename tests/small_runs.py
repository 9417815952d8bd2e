"""Small models, streams and runs for the tests of training.

As a program (``python small_runs.py FOLDER``, see test_resume) it makes the reference run, and then
the same run again and again, killed by SIGKILL at one point after another and resumed.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo  # torch.optim imports it at its first step: once here, not in every fork
from torch import nn

from dnirnn import LSTM, Clockwork, LeastSquares, SyntheticGradient, Truncated, ZeroGradient
from dnirnn.data import Batch, Stream, TextStream
from dnirnn.model import SequenceModel, measure, symbol_nats
from dnirnn.training.checkpoint import checkpoints, load
from dnirnn.training.log import WALL_CLOCK, read_log
from dnirnn.training.trainer import Trainer, TrainerConfig

SYMBOLS = 7


def make_model(estimator="dni", truncation=3, dropout=0.0, seed=0, hidden=5) -> SequenceModel:
    torch.manual_seed(seed)
    core = LSTM(4, hidden)
    made = ZeroGradient()
    if estimator == "dni":
        made = SyntheticGradient(core.state_size, (6,), scale=0.5, discount=0.5)
        # Away from zero, where a synthetic gradient would change nothing.
        nn.init.normal_(made.layers[-1].weight, std=0.1)
    elif estimator == "least-squares":
        made = LeastSquares(core.state_size, solve_every=3)
    return SequenceModel(
        nn.Embedding(SYMBOLS, 4),
        Truncated(core, truncation, made),
        nn.Linear(hidden, SYMBOLS),
        symbol_nats,
        dropout,
    )


def ticking(seed=3) -> SequenceModel:
    """A teacher whose steps depend on t."""
    torch.manual_seed(seed)
    core = Clockwork(4, 6, (1, 2, 4))
    return SequenceModel(
        torch.nn.Embedding(SYMBOLS, 4), Truncated(core, 3, ZeroGradient()),
        torch.nn.Linear(6, SYMBOLS), symbol_nats, 0.3,
    )  # fmt: skip


def text(length=203, seed=1) -> torch.Tensor:
    return torch.randint(0, SYMBOLS, (length,), generator=torch.Generator().manual_seed(seed))


def small_stream() -> TextStream:
    return TextStream(text(), 4, 0)


class Recall(Stream):
    """Random symbols, then a wait, then the symbols again; longer when told of few bits.

    Only the symbols that come again have weight. The lengths are drawn, so sequences differ.
    """

    def __init__(self, batch_size=4, seed=0):
        self.batch_size, self.epochs = batch_size, 0.0
        self.generator = torch.Generator().manual_seed(seed)
        self.longest, self.told, self.left = 3, [], None

    def next(self, steps):
        first = self.left is None
        if first:
            length = int(torch.randint(1, self.longest + 1, (1,), generator=self.generator))
            shape = (length, self.batch_size)
            given = torch.randint(1, SYMBOLS, shape, generator=self.generator)
            silent = torch.zeros_like(given)
            self.left = torch.stack([torch.cat([given, silent]), torch.cat([silent, given])])
            self.epochs += 1
        steps = self.left.shape[1] if steps is None else min(steps, self.left.shape[1])
        x, y = self.left[:, :steps]
        final = steps == self.left.shape[1]
        self.left = None if final else self.left[:, steps:]
        return Batch(x, y, (y > 0).float(), first, final)

    def observe(self, bits):
        self.told.append(bits)
        self.longest += bits < 2.9

    def state_dict(self):
        return {
            "generator": self.generator.get_state(),
            "longest": self.longest,
            "told": list(self.told),
            "left": self.left,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.longest, self.told, self.left = state["longest"], list(state["told"]), state["left"]
        self.epochs = state["epochs"]


def make_trainer(
    folder, *, model=None, stream=None, evaluate=True, test=None, fidelity=None, ranks=None, **config
) -> Trainer:
    """A trainer whose checkpoints come by count alone."""
    held_out = TextStream(text(50, seed=2), 4, 0)
    common = dict(lr=0.01, estimator_lr=0.01, checkpoint_seconds=None, log_every=4)
    return Trainer(
        make_model() if model is None else model,
        small_stream() if stream is None else stream,
        TrainerConfig(**common | config),
        folder,
        (lambda model: measure(model, held_out, 16)) if evaluate is True else evaluate or None,
        test=test,
        fidelity=fidelity,
        ranks=ranks,
    )


def rows_of(folder) -> list[dict]:
    """The rows of a run's log, without what the wall clock decides."""
    rows = read_log(Path(folder) / "log.jsonl")
    return [{name: row[name] for name in row if name not in WALL_CLOCK} for row in rows]


def end_of(folder) -> tuple[dict, dict]:
    """(tensors, state) of a run's last checkpoint, but for the wall clock and how often it is measured."""
    tensors, state = load(checkpoints(Path(folder) / "checkpoints")[-1])
    for name in ("seconds", "log", "log_sha256"):
        state.pop(name)
    state["pending"].pop("seconds")
    state["config"].pop("fidelity_every", None)
    return tensors, state


def assert_equal_runs(folder, reference) -> None:
    """Equal bits of everything that the checkpoints and the logs hold, wall clock aside."""
    assert rows_of(folder) == rows_of(reference)
    (tensors, state), (expected, expected_state) = end_of(folder), end_of(reference)
    assert state == expected_state
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


def assert_same_but_for_rng(folder, reference) -> None:
    """The same of runs of so many processes, each of which has random numbers of its own."""
    assert rows_of(folder) == rows_of(reference)
    (tensors, state), (expected, expected_state) = end_of(folder), end_of(reference)
    for one in (state, expected_state):
        one.pop("others_rng", None), one.pop("rng")
    assert state == expected_state
    names = {name for name in (*tensors, *expected) if "rng" not in name}
    for name in names:
        assert torch.equal(tensors[name], expected[name]), name


PLAIN = dict(optimizer="SGD", estimator_optimizer="SGD", lr=0.1, estimator_lr=0.1, clip=None)


def train(folder, **config):
    trainer = make_trainer(folder, evaluate=config.pop("evaluate", None), **config)
    trainer.run()
    return trainer


def assert_same_weights(one, other, **tolerance):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text: f"{name}: {text}", **tolerance)


# The resume law under SIGKILL

UPDATES = 26


def resumable(folder) -> Trainer:
    """A run with everything that has a state: dropout, a curriculum, a schedule, a best model."""
    return make_trainer(
        folder,
        model=make_model(dropout=0.2),
        stream=Recall(),
        updates=UPDATES,
        evaluate_every=5,
        checkpoint_every=4,
        schedule="CosineAnnealingLR",
        schedule_options={"T_max": UPDATES},
        estimator_clip=0.5,
    )


def kill_points(seed=0) -> list[list[tuple[str, int]]]:
    """Trials: each a list of (function, its n-th call) at which the run is killed, in turn."""
    draw = random.Random(seed)
    updates = draw.sample(range(1, UPDATES + 1), 6)
    saves = draw.sample(range(1, 80), 8)
    moves = draw.sample(range(1, 20), 3)
    trials = [[("next", n)] for n in updates]
    trials += [[("fsync", n)] for n in saves] + [[("rename", n)] for n in moves]
    return trials + [[("next", 7), ("fsync", 9), ("next", 3), ("rename", 2), ("next", 8)]]


def kill_at(name: str, call: int) -> None:
    """SIGKILL to this process at the n-th call of stream.next, os.fsync or Path.rename."""
    owner = {"next": Recall, "fsync": os, "rename": Path}[name]
    function, calls = getattr(owner, name), 0

    def counted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    setattr(owner, name, counted)


def in_a_child(folder, killed_at=None) -> int:
    """Runs in a fork, which knows nothing of the runs before: the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if killed_at is not None:
                kill_at(*killed_at)
            resumable(folder).run()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the run in {folder} failed at {killed_at}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    in_a_child(folder / "reference")
    for number, points in enumerate(kill_points()):
        run = folder / f"trial-{number}"
        signals = [in_a_child(run, point) for point in points]
        in_a_child(run)
        (run / "signals.json").write_text(json.dumps(signals))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
