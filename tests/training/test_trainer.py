"""The trainer against loops written out by hand."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import (
    PLAIN,
    Recall,
    assert_same_weights,
    make_model,
    make_trainer,
    rows_of,
    small_stream,
    text,
    train,
)
from torch import nn

from dnirnn import TrueGradient, Truncated, true_gradients
from dnirnn.data import TextStream
from dnirnn.model import measure
from dnirnn.training.trainer import Trainer

# What an update is


def by_hand(model, stream, chunks, updates):
    """Truncated BPTT in plain torch with nn.LSTM: detached at every cut, SGD without clipping."""
    lstm = nn.LSTM(4, 5).double()
    lstm.load_state_dict(model.truncated.core.state_dict())
    encoder, readout = copy.deepcopy(model.encoder), copy.deepcopy(model.readout)
    parameters = [*encoder.parameters(), *lstm.parameters(), *readout.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    truncation = model.truncated.truncation
    steps = None if chunks == "sequence" else truncation * chunks
    for _ in range(updates):
        batch = stream.next(steps)
        if batch.first:
            state = None
        optimizer.zero_grad()
        weight = torch.ones(batch.y.shape) if batch.weight is None else batch.weight
        chunked = (part.split(truncation) for part in (batch.x, batch.y, weight))
        for x, y, counts in zip(*chunked):
            output, state = lstm(encoder(x), state)
            logits = readout(output).transpose(1, 2)
            loss = nn.CrossEntropyLoss(reduction="none")(logits, y) * counts
            (loss.sum() / (stream.batch_size * (steps or 1))).backward()
            state = tuple(part.detach() for part in state)
        optimizer.step()
    return encoder, lstm, readout


def oracle_trainer(folder, stream, chunks, lookahead=None, discount=1.0) -> Trainer:
    """One that looks ahead, in float64, whose optimiser keeps the weights and the gradients."""
    model = make_model("none").double()
    oracle = TrueGradient(lookahead, discount=discount)
    model.truncated = Truncated(model.truncated.core, 3, oracle)
    config = dict(chunks=chunks, updates=1, clip=None)
    trainer = make_trainer(folder, model=model, stream=stream, evaluate=None, **config)
    trainer.found = []
    trainer.optimizer.step = lambda: trainer.found.append([p.grad.clone() for p in trainer.core])
    return trainer


@pytest.mark.parametrize("chunks", [1, 2, "sequence"])
@pytest.mark.parametrize("make_stream", [small_stream, Recall])
def test_with_the_end_in_sight_updates_add_up_to_full_backpropagation(
    tmp_path, chunks, make_stream
):
    trainer, whole = oracle_trainer(tmp_path, make_stream(), chunks), make_stream().next(None)
    for _ in range(1 if chunks == "sequence" else math.ceil(len(whole.x) / (3 * chunks))):
        trainer.learn()
    assert trainer.t == len(whole.x)
    expected = make_model("none").double()
    expected.truncated.truncation = len(whole.x)
    nats, _, _ = expected(whole, expected.initial_state(4))
    (nats.sum() * trainer.updater.unit).backward()
    for name, found in zip(dict(expected.named_parameters()), zip(*trainer.found), strict=True):
        true = expected.get_parameter(name).grad
        torch.testing.assert_close(sum(found), true, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("lookahead", [1, 3])
def test_looking_ahead_leaves_the_stream_where_it_is(tmp_path, lookahead):
    """What is found are the gradients of so many chunks from each cut, whatever is in the call."""
    trainer, stream = oracle_trainer(tmp_path, small_stream(), 2, lookahead, 0.5), small_stream()
    model, state, t = trainer.model, None, 0
    for _ in range(12):
        trainer.learn()
        batch = stream.next(6)
        if batch.first:
            state, t = model.initial_state(4), 0
        after = small_stream()
        after.load_state_dict(stream.state_dict())
        ahead = batch if batch.final else batch.then(after.next(3 * lookahead))
        gradients = model.truncated.estimator.gradients
        nats, _, (cut,) = model(ahead, state, t)
        true = true_gradients(nats.sum(), cut, lookahead, 0.5)
        torch.testing.assert_close(gradients, true)
        state, t = cut.end[-(-len(batch.x) // 3) - 1].detach(), t + len(batch.x)
        assert trainer.stream.state_dict() == stream.state_dict()
        torch.testing.assert_close(trainer.state, state)


@pytest.mark.parametrize("config, dropout, says", [
    (dict(), 0.1, "dropout must be 0 with TrueGradient, .*got 0.1"),
    (dict(micro_batch=2), 0.0, "micro_batch must be None with TrueGradient, .*got 2"),
    (dict(warm_up=2), 0.0, "warm_up, .*need an estimator that is fitted"),
])  # fmt: skip
def test_what_can_not_be_foreseen_is_refused(tmp_path, config, dropout, says):
    model = make_model("none", dropout=dropout)
    model.truncated.estimator = TrueGradient()
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path, model=model, updates=1, **config)


@pytest.mark.parametrize("chunks", [1, 4, "sequence"])
@pytest.mark.parametrize("make_stream", [small_stream, Recall])
def test_updates_are_those_of_a_loop_by_hand(tmp_path, chunks, make_stream):
    """Per chunk, per four chunks, per sequence; over sequences' ends, with short last chunks."""
    model, streams = make_model("none").double(), [make_stream(), make_stream()]
    streams[1].observe = lambda bits: None
    expected = by_hand(model, streams[0], chunks, updates=25)
    train(tmp_path, model=model, stream=streams[1], chunks=chunks, updates=25, **PLAIN)
    for part, other in zip((model.encoder, model.truncated.core, model.readout), expected):
        assert_same_weights(part, other)


@pytest.mark.parametrize(("chunks", "updates"), [(1, 17), (4, 5), (20, 1), ("sequence", 1)])
def test_an_epoch_has_as_many_updates_as_its_chunks_ask_for(tmp_path, chunks, updates):
    """203 symbols in 4 rows are 51 steps: 17 chunks of 3."""
    trainer = train(tmp_path, chunks=chunks, symbols=203)
    assert (trainer.update, trainer.symbols, trainer.stream.epochs) == (updates, 203, 1)


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from(["none", "dni"]), st.booleans())
def test_pieces_add_up_to_the_whole_batch(tmp_path_factory, size, estimator, recall):
    found = []
    for micro_batch in (None, size):
        model = make_model(estimator).double()
        stream = Recall(12) if recall else TextStream(text(301), 12, 0)
        options = dict(micro_batch=micro_batch, chunks=2, updates=20) | PLAIN
        folder = tmp_path_factory.mktemp("run")
        found.append(train(folder, model=model, stream=stream, **options))
    assert_same_weights(found[0].model, found[1].model)
    torch.testing.assert_close(found[0].state, found[1].state)
    for row, other in zip(*(rows_of(trainer.folder) for trainer in found), strict=True):
        assert row == pytest.approx(other)


def test_the_state_goes_on_from_update_to_update_and_starts_anew_with_a_sequence(tmp_path):
    trainer = make_trainer(tmp_path, updates=40, evaluate=None)
    seen, run = [], trainer.model.forward
    initial = trainer.model.initial_state(4)

    def forward(batch, state, t0):
        nats, ended, interfaces = run(batch, state, t0)
        seen.append((batch.first, state.clone(), t0, ended, len(batch.x)))
        return nats, ended, interfaces

    trainer.model.forward = forward
    trainer.run()
    assert [first for first, *_ in seen].count(True) == 3
    for before, (first, state, t0, *_) in zip([None, *seen], seen):
        if first:
            assert torch.equal(state, initial) and t0 == 0
        else:
            assert torch.equal(state, before[3]) and t0 == before[2] + before[4]


def test_a_fresh_estimator_s_first_update_is_that_of_plain_truncation(tmp_path):
    models = [make_model("none"), make_model("dni")]
    nn.init.zeros_(models[1].truncated.estimator.layers[-1].weight)
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    for number, model in enumerate(models):
        train(tmp_path / str(number), model=model, updates=1, chunks=3)
    for a, b in zip(*(model.core_parameters() for model in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("part", ["core", "estimator"])
def test_clipping_bounds_each_part_s_own_step(tmp_path, part):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    largest = {"core": "clip", "estimator": "estimator_clip"}[part]
    trainer = train(tmp_path, model=model, updates=1, **(PLAIN | {largest: 1e-3}))
    moved = {"core": 0.0, "estimator": 0.0}
    for name, value in trainer.model.state_dict().items():
        kind = "estimator" if "estimator" in name else "core"
        moved[kind] += (value - before[name]).double().square().sum().item()
    other = "estimator" if part == "core" else "core"
    assert math.sqrt(moved[part]) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert math.sqrt(moved[other]) > 0.1 * 2e-3


def test_adam_is_fused_and_each_part_has_its_own_rate(tmp_path):
    trainer = make_trainer(tmp_path, updates=1, lr=0.3, estimator_lr=0.2, optimizer_options={"eps": 1e-6})
    core, estimator = (optimizer.param_groups[0] for optimizer in trainer.optimizers)
    assert core["fused"] and estimator["fused"]
    assert (core["lr"], core["eps"], estimator["lr"], estimator["eps"]) == (0.3, 1e-6, 0.2, 1e-8)
    assert len(make_trainer(tmp_path, model=make_model("none"), updates=1).optimizers) == 1


def test_training_learns(tmp_path):
    """A text that repeats is all but certain in the end."""
    symbols = torch.arange(5).repeat(60)
    for estimator in ("none", "dni"):
        model = make_model(estimator, hidden=16)
        if estimator == "dni":
            nn.init.zeros_(model.truncated.estimator.layers[-1].weight)
        stream = TextStream(symbols, 4, 4)
        held_out = TextStream(symbols, 2, 4)
        result = make_trainer(
            tmp_path / estimator,
            model=model,
            stream=stream,
            updates=300,
            evaluate=lambda model, held_out=held_out: measure(model, held_out),
        ).run()
        assert result["best"]["bits"] < 0.1
