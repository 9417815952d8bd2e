"""An update that nobody watches, eager or replayed, is the one that the host watches."""

import pytest
import torch
from graphs import Graphs, NoWaiting, Waited, unwatched
from small_runs import SYMBOLS, Recall, assert_equal_runs, make_model, make_trainer, rows_of
from strategies import CORES, Clock
from torch import nn

from dnirnn import BPLambda, SyntheticGradient, Truncated, ZeroGradient, backward
from dnirnn.data import Batch, TextStream
from dnirnn.model import SequenceModel
from dnirnn.training.trainer import NonFinite
from dnirnn.training.updater import GRAPHS, Updater

RATE = 2**-7  # a float32, as a rate on a device is


def model_with(estimator=None, core=None, truncation=3, dropout=0.0) -> SequenceModel:
    """small_runs' model with another core or estimator."""
    model = make_model(truncation=truncation, dropout=dropout)
    if core is not None:
        made = SyntheticGradient(core.state_size, (6,), 0.5, 0.5)
        nn.init.normal_(made.layers[-1].weight, std=0.1)
        model.truncated = Truncated(core, truncation, made)
    if estimator is not None:
        for part in estimator.modules():
            if isinstance(part, SyntheticGradient):
                nn.init.normal_(part.layers[-1].weight, std=0.1)
        model.truncated.estimator = estimator
    return model


# name: (model, options of the trainer, equal to the bit)
CASES = {
    "adam": (make_model, dict(), True),
    "adamw": (make_model, dict(optimizer="AdamW", options={"weight_decay": 0.1}), True),
    "no estimator": (lambda: make_model("none"), dict(), True),
    "four chunks": (make_model, dict(chunks=4), True),
    "truncations, as planned": (
        make_model, dict(chunks=2, truncation_plan=(6,), chunks_plan=(1,)), True
    ),
    "sequences": (make_model, dict(chunks="sequence", stream=Recall), True),
    "short last chunks": (make_model, dict(stream=Recall), True),
    "pieces": (make_model, dict(micro_batch=2), True),
    "dropout": (lambda: make_model(dropout=0.3), dict(), True),
    "clipped": (make_model, dict(clip=2**-5, estimator_clip=2**-6), True),
    "lifted": (make_model, dict(min_norm=2.0, clip=4.0, estimator_min_norm=1.0), True),
    "warm-up": (make_model, dict(warm_up=5, ramp=4), True),
    "decay": (make_model, dict(decay="cosine"), False),
    "one cycle": (
        make_model,
        dict(schedule="OneCycleLR", schedule_options={"max_lr": 0.02, "total_steps": 40}),
        False,
    ),
    "clock": (lambda: model_with(core=Clock(4, 5)), dict(), False),
    "unequal knobs": (
        lambda: model_with(SyntheticGradient(10, (6,), scale=0.5, discount=0.2)), dict(), True
    ),
    "normalised": (lambda: model_with(SyntheticGradient(10, (6,), normalise=True)), dict(), True),
    "dense": (lambda: model_with(SyntheticGradient(10, (6,), dense=True)), dict(), True),
    "next input": (
        lambda: model_with(SyntheticGradient(10, (6,), context_size=4)), dict(chunks=2), True
    ),
    "lambda": (
        lambda: model_with(SyntheticGradient(10, (6,), trace_decay=0.5)), dict(chunks=3), True
    ),
    "auxiliary": (
        lambda: model_with(SyntheticGradient(10, (6,), auxiliary=0.5)), dict(chunks=3), True
    ),
    "bp-lambda": (lambda: model_with(BPLambda(10, 4)), dict(), True),
}  # fmt: skip


def run(folder, model, *, capture=None, watch=False, updates=40, **options):
    stream = options.pop("stream", None)
    trainer = make_trainer(
        folder,
        model=model(),
        stream=TextStream(torch.arange(203) * 5 % SYMBOLS, 4, 0) if stream is None else stream(),
        evaluate=None,
        **dict(updates=updates, lr=RATE, estimator_lr=RATE, log_every=8) | options,
    )
    if not watch:
        unwatched(trainer, capture)
    trainer.run()
    return trainer


@pytest.mark.parametrize("name", CASES)
def test_replayed_is_watched(tmp_path, name):
    """Rows, parameters, states of optimizers and estimators: what checkpoints and logs hold."""
    model, options, to_the_bit = CASES[name]
    graphs = Graphs()
    expected = run(tmp_path / "watched", model, watch=True, **options)
    found = run(tmp_path / "replayed", model, capture=graphs, **options)
    replayed = 20 if name not in ("one cycle", "sequences", "short last chunks") else 0
    assert graphs.replays >= replayed and bool(graphs.captured) == (name != "one cycle")
    if to_the_bit:
        assert_equal_runs(tmp_path / "replayed", tmp_path / "watched")
        return
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for row, other in zip(*(rows_of(tmp_path / n) for n in ("watched", "replayed")), strict=True):
        assert row.pop("kind") == other.pop("kind")
        assert row == pytest.approx(other, rel=1e-4)


def test_a_replay_runs_no_python(tmp_path):
    graphs, calls = Graphs(), []

    def counted():
        model = make_model()
        forward = model.forward
        model.forward = lambda *arguments: calls.append(1) or forward(*arguments)
        return model

    run(tmp_path, counted, capture=graphs, updates=60)
    # Each kind once eagerly and once as it is captured; an epoch is 16 windows and a last one.
    assert len(calls) == 2 * graphs.captured and graphs.captured == 2
    assert graphs.replays == 60 - 2


def test_a_kind_that_comes_once_is_not_captured_and_what_is_kept_is_bounded(tmp_path):
    graphs = Graphs()
    trainer = run(tmp_path, make_model, capture=graphs, updates=30, ramp=25)
    assert len(trainer.updater.graphs) <= GRAPHS
    assert graphs.captured == 1 and graphs.replays == 30 - 25 - 1


def test_the_host_reads_what_was_told_when_it_logs_saves_and_where_a_sequence_ends(tmp_path):
    trainer = make_trainer(tmp_path, updates=40, log_every=10, checkpoint_every=4, evaluate=None)
    read = unwatched(trainer, None, capacity=10).read
    at = []

    def noted():
        at.append(trainer.update)
        return read()

    trainer.updater.read = noted
    trainer.run()
    # An epoch is 17 updates.
    assert at[1:] == sorted({*range(4, 41, 4), *range(10, 41, 10), 17, 34})


def poisoned() -> SequenceModel:
    """What it makes of the last symbol is not finite, from the start; an update leaves it so."""
    model = make_model()
    with torch.no_grad():
        model.encoder.weight[SYMBOLS - 1] = torch.inf
    return model


def late(at=31, length=203) -> TextStream:
    """A text in 4 rows with the last symbol at one step."""
    symbols = torch.arange(length) * 5 % (SYMBOLS - 1)
    symbols[at] = SYMBOLS - 1
    return TextStream(symbols, 4, 0)


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("options", [
    dict(), dict(schedule="ExponentialLR", schedule_options={"gamma": 0.5}),
])  # fmt: skip
def test_what_is_not_finite_changes_nothing_and_is_named(tmp_path, replayed, options):
    """The updates after it, which the host asked for before it looked, are as if never made."""
    told, graphs = [], Graphs() if replayed else None
    for name in ("watched", "unwatched"):
        with pytest.raises(NonFinite) as raised:
            run(
                tmp_path / name, poisoned, stream=late, watch=name == "watched", capture=graphs,
                **options,
            )  # fmt: skip
        told.append(str(raised.value).replace(name, "run"))
    assert told[0] == told[1]
    assert told[0].startswith("update 11: the loss is nan, in the window of 3 steps from step 30")
    assert_equal_runs(tmp_path / "unwatched", tmp_path / "watched")


def test_run_again_it_stops_at_the_same_update(tmp_path):
    """What it knew of the run before is gone: its graphs, and that an update was not finite."""
    trainer = make_trainer(
        tmp_path, model=poisoned(), stream=late(), updates=20, evaluate=None, lr=RATE
    )
    unwatched(trainer, Graphs())
    told = []
    for _ in range(2):
        with pytest.raises(NonFinite) as raised:
            trainer.run()
        told.append(str(raised.value))
    assert told[0] == told[1] and not trainer.unread


# No waiting


@pytest.mark.parametrize("name", CASES)
def test_an_update_waits_for_nothing(tmp_path, name):
    model, options, _ = CASES[name]
    options = {key: value for key, value in options.items() if key != "stream"}
    trainer = make_trainer(tmp_path, model=model(), updates=9, evaluate=None, **options)
    updater = unwatched(trainer, None)
    make = updater.unwatched

    def strictly(batch):
        with NoWaiting():
            make(batch)

    updater.unwatched = strictly
    trainer.run()


ESTIMATORS = {
    "none": lambda size: ZeroGradient(),
    "linear": lambda size: SyntheticGradient(size),
    "normalised, unequal knobs": lambda size: SyntheticGradient(
        size, (6,), 0.5, 0.1, normalise=True
    ),
    "dense": lambda size: SyntheticGradient(size, (6,), dense=True),
    "lambda": lambda size: SyntheticGradient(size, (6,), trace_decay=0.5),
    "auxiliary": lambda size: SyntheticGradient(size, (6,), auxiliary=0.5),
    "next input": lambda size: SyntheticGradient(size, (6,), context_size=4),
    "bp-lambda": lambda size: BPLambda(size, 4),
}


def on_nothing(core, estimator, final, reset=False):
    """A call and its backward pass on tensors that hold no values, at a t that is one of them."""
    truncated = Truncated(core, 3, estimator).to("meta")
    empty = dict(device="meta")
    x, state = torch.empty(8, 4, 4, **empty), torch.empty(4, core.state_size, **empty)
    rows = torch.zeros(4, dtype=torch.bool, **empty)
    context = {"context": torch.empty(9, 4, 4, **empty)} if estimator.needs_context else {}
    with NoWaiting():
        output, _, interfaces = truncated(
            x, state, torch.zeros(4, dtype=torch.long, **empty),
            rows if final == "some" else final,
            torch.zeros(8, 4, dtype=torch.bool, **empty) if reset else None, **context,
        )  # fmt: skip
        backward(output.sum(), interfaces, 0.25)
    return truncated


@pytest.mark.parametrize("name", CORES)
def test_no_core_waits(name):
    core = CORES[name][0](4, 5)
    truncated = on_nothing(core, SyntheticGradient(core.state_size, (6,)), True)
    assert all(p.grad is not None for p in truncated.estimator.parameters())


@pytest.mark.parametrize("final", [False, True, "some"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_estimator_waits_wherever_a_sequence_ends(name, reset, final):
    core = Clock(4, 5)
    on_nothing(core, ESTIMATORS[name](core.state_size), final, reset)


@pytest.mark.parametrize("what", [
    lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x.any()),
    lambda x: x + torch.tensor([1.0, 2.0]), lambda x: float(x[0]),
    lambda x: x.cpu() if x.is_meta else x.to("meta"),
])  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_waits_is_caught(what, device):
    x = torch.ones(2, device=device)
    # On nothing torch itself may refuse before it is caught.
    refused = (Waited, RuntimeError, NotImplementedError) if x.is_meta else Waited
    with pytest.raises(refused), NoWaiting():
        what(x)


def test_an_optimizer_that_can_t_skip_is_watched(tmp_path):
    for options in (dict(optimizer="SGD"), dict(estimator_optimizer="RMSprop"),
                    dict(options={"fused": False})):  # fmt: skip
        trainer = make_trainer(tmp_path, updates=1, **options)
        assert trainer.updater.watch
        with pytest.raises(ValueError, match="watch must be True with .*, which can't skip"):
            unwatched(trainer, None)


def test_an_updater_alone():
    """What a benchmark or a loop of one's own does with it."""
    model = make_model()
    optimizers = [
        torch.optim.Adam(parameters, lr=RATE, fused=True)
        for parameters in (model.core_parameters(), model.estimator_parameters())
    ]
    updater = Updater(
        model, optimizers, [(None, 1.0), (None, None)], 4, 4, 1 / 12, watch=False,
        capture=Graphs(), capacity=9,
    )  # fmt: skip
    x = torch.randint(0, SYMBOLS, (4, 4))
    state, t = model.initial_state(4), 0
    for _ in range(9):
        state, t = updater(Batch(x[:3], x[1:]), state, t), t + 3
    rows = updater.read()
    assert len(rows) == 9 and rows[-1][0] < rows[0][0] and updater.read() == []
