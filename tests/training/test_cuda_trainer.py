"""Training on a GPU: the CPU's run but for rounding, replayed, never waiting, resumed anywhere."""

import multiprocessing

import pytest
import torch
from small_runs import SYMBOLS, Recall, assert_equal_runs, end_of, make_model, make_trainer, rows_of
from test_updater import late, poisoned

from dnirnn.commands import cli
from dnirnn.core import CORES
from dnirnn.data import TextStream
from dnirnn.training.trainer import NonFinite, Trainer
from dnirnn.training.updater import Updater

pytestmark = pytest.mark.cuda


@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return "cuda"


def train(folder, device, *, model=make_model, graphs=True, **options) -> Trainer:
    """small_runs' trainer, float64, on a device."""
    stream = options.pop("stream", lambda: TextStream(torch.arange(203) * 5 % SYMBOLS, 4, 0))
    common = dict(evaluate=None, updates=40, log_every=8, lr=2**-7, estimator_lr=2**-7)
    made = make_trainer(folder, model=model().double(), stream=stream(), **common | options)
    trainer = Trainer(
        made.model, made.stream, made.config, folder, device=device, graphs=graphs
    )
    trainer.run()
    return trainer


def assert_close_runs(folder, reference, tolerance=1e-6) -> None:
    for row, other in zip(rows_of(folder), rows_of(reference), strict=True):
        numbers = {name for name, value in other.items() if isinstance(value, (int, float))}
        assert row.keys() == other.keys() and row["kind"] == other["kind"]
        assert {name: row[name] for name in numbers} == pytest.approx(
            {name: other[name] for name in numbers}, rel=1e-5
        )
    (tensors, _), (expected, _) = end_of(folder), end_of(reference)
    for name in expected:
        if name.startswith(("model", "state")):
            torch.testing.assert_close(
                tensors[name], expected[name], rtol=tolerance, atol=tolerance
            )


CASES = {
    "plain": dict(),
    "none": dict(model=lambda: make_model("none")),
    "four chunks": dict(chunks=4),
    "sequences": dict(chunks="sequence", stream=Recall),
    "curriculum": dict(stream=Recall),
    "pieces": dict(micro_batch=2),
    "clipped": dict(clip=0.03, estimator_clip=0.02),
    "warm-up": dict(warm_up=5, ramp=4),
    "one cycle": dict(
        schedule="OneCycleLR", schedule_options={"max_lr": 0.02, "total_steps": 40}
    ),
    "not skipping": dict(optimizer="SGD", estimator_optimizer="RMSprop"),
}


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_the_cpu(tmp_path, gpu, name, graphs):
    train(tmp_path / "cpu", "cpu", **CASES[name])
    trainer = train(tmp_path / "gpu", gpu, graphs=graphs, **CASES[name])
    assert trainer.device.type == gpu
    assert trainer.updater.watch == (name == "not skipping")
    assert_close_runs(tmp_path / "gpu", tmp_path / "cpu")


def test_updates_are_replayed(tmp_path, gpu):
    calls = []

    def counted():
        model = make_model()
        forward = model.forward
        model.forward = lambda *arguments: calls.append(1) or forward(*arguments)
        return model

    train(tmp_path, gpu, model=counted, updates=60)
    assert len(calls) == 4


def test_dropout_is_drawn_anew_in_every_replay(tmp_path, gpu):
    trainer = train(tmp_path, gpu, model=lambda: make_model(dropout=0.5), lr=1e-12, log_every=1,
                    stream=lambda: TextStream(torch.zeros(200, dtype=torch.long), 4, 0))  # fmt: skip
    bits = {row["bits"] for row in rows_of(tmp_path)}
    assert len(bits) > 30 and trainer.updater.graphs


def test_the_host_never_waits_within_an_update(tmp_path, gpu, monkeypatch):
    call, calls = Updater.__call__, []

    def strictly(self, batch, state, t):
        if len(self.graphs) < 1 or any(kept is None for kept in self.graphs.values()):
            return call(self, batch, state, t)  # warms up, captures
        calls.append(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call(self, batch, state, t)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Updater, "__call__", strictly)
    train(tmp_path, gpu, updates=16)
    assert len(calls) > 10


@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_run_goes_on_on_another_device(tmp_path, gpu, first, second):
    train(tmp_path / "whole", second, updates=24)
    config = dict(updates=24, checkpoint_every=5)

    class Stopped(Exception):
        pass

    def stop(row):
        if row["update"] == 16:
            raise Stopped

    made = make_trainer(
        tmp_path / "parts", model=make_model().double(), evaluate=None, log_every=8, lr=2**-7,
        estimator_lr=2**-7, stream=TextStream(torch.arange(203) * 5 % SYMBOLS, 4, 0), **config,
    )  # fmt: skip
    with pytest.raises(Stopped):
        Trainer(made.model, made.stream, made.config, tmp_path / "parts", device=first).run(stop)
    train(tmp_path / "parts", second, **config)
    assert_close_runs(tmp_path / "parts", tmp_path / "whole")


def test_killed_and_resumed_is_the_same_run_to_the_bit(tmp_path, gpu):
    options = dict(updates=24, checkpoint_every=5, model=lambda: make_model(dropout=0.3))
    train(tmp_path / "whole", gpu, **options)
    learn = Trainer.learn

    def learn_or_die(self):
        if self.update == 17:
            raise KeyboardInterrupt
        learn(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "learn", learn_or_die)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", gpu, **options)
    train(tmp_path / "parts", gpu, **options)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("graphs", [True, False])
def test_what_is_not_finite_changes_nothing_and_is_named(tmp_path, gpu, graphs):
    told = []
    for device in ("cpu", gpu):
        with pytest.raises(NonFinite) as raised:
            train(tmp_path / device, device, model=poisoned, stream=late, graphs=graphs)
        told.append(str(raised.value).replace(f"/{device}/", "/"))
    assert told[0] == told[1]
    assert_close_runs(tmp_path / gpu, tmp_path / "cpu")


@pytest.mark.parametrize("core", CORES)
def test_every_core_trains(tmp_path, gpu, core):
    words = ["train", "copy", "--core", core, "--hidden", "8", "--updates", "30", "--quiet"]
    words += ["--truncation", "4", "--max-length", "4", "--start-length", "4", "--batch", "4"]
    assert cli.main([*words, "--device", gpu, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("words", [
    ["--estimator", "bp-lambda", "--hidden", "4"], ["--estimator", "least-squares"],
    ["--dtype", "bfloat16"], ["--context", "input", "--dense", "--normalise"],
    ["--update-steps", "8", "--trace-decay", "0.5", "--auxiliary", "0.5"], ["--no-graphs"],
    ["--estimator", "true"],
], ids=" ".join)  # fmt: skip
def test_every_way_of_training_and_every_command_computes_there(tmp_path, gpu, words, capsys):
    run = tmp_path / "run"
    small = ["--truncation", "4", "--updates", "20", "--quiet"]
    small += [] if "--hidden" in words else ["--hidden", "8"]
    small += [] if "--estimator" in words else ["--estimator", "dni"]
    command = ["train", "char-lm", *small, *words, "--device", gpu, "--out", str(run)]
    assert cli.main(command) == 0
    commands = {"eval": [], "sample": ["--length", "5"]}
    if words[1:] not in (["true"], ["least-squares"]):
        commands["fidelity"] = ["--lookahead", "8"]
    for name, more in commands.items():
        said = []
        for device in (gpu, "cpu"):
            assert cli.main([name, str(run), *more, "--device", device]) == 0
            said.append(capsys.readouterr().out)
        if name == "sample" and "bfloat16" not in words:
            assert said[0] == said[1]


def test_digits_computes_there(tmp_path, gpu):
    words = ["train", "digits", "--hidden", "8", "--updates", "20", "--quiet", "--device", gpu]
    pytest.importorskip("sklearn")
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert cli.main(["eval", str(tmp_path / "run"), "--device", gpu]) == 0


def asking():
    """A model that waits for the device, and draws random numbers there."""
    model = make_model(dropout=0.5)
    forward = model.forward
    model.forward = lambda batch, state, t: (
        forward(batch, state, t) if float(state.sum()) == 0 else forward(batch, state, t)
    )
    return model


def refused_then_eager(folder) -> None:
    with pytest.raises(ValueError, match="can't be captured in a CUDA graph; graphs=False"):
        train(folder / "graphs", "cuda", model=asking)
    train(folder / "eager", "cuda", model=asking, graphs=False)


def test_a_core_that_no_graph_can_hold_is_named(tmp_path, gpu):
    """In a process of its own: torch's state after a capture that failed is nobody else's affair."""
    process = multiprocessing.get_context("spawn").Process(
        target=refused_then_eager, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_the_benchmark_measures(gpu, precision):
    from benchmarks import cuda
    from dnirnn.device import find_device, own_stream

    with own_stream(find_device(gpu)):
        row = cuda.step_point(32, 4, precision, 0.01)
        assert row["ours_ms"] > 0 and row["vs_graph"] > 0
        lines = cuda.timelines_of(32, 4, precision)
        assert len(lines["ours"]) < len(lines["plain"]) and "finish_kernel" in lines["ours"][-1]
        rates = {precision: 1e12, "bytes": 1e12, "step": 1e-6}
        row = cuda.op_point(32, 4, 10, 5, precision, 0.01, rates)
        assert row["vs_cudnn"] > 0 and 0 < row["of_floor"]
