"""SequenceModel against torch.nn, its dropout, and the measure of a stream."""

import math

import pytest
import torch
from small_runs import SYMBOLS, make_model, text
from torch import nn

from dnirnn import LSTM, Truncated, ZeroGradient
from dnirnn.data import Batch, TextStream
from dnirnn.model import SequenceModel, bit_nats, measure, squared_error, symbol_nats


def batch_of(steps=9, rows=4, **flags) -> Batch:
    symbols = text(steps * rows + 1)
    return Batch(symbols[:-1].view(steps, rows), symbols[1:].view(steps, rows), **flags)


def nats_in_plain_torch(model, batch):
    """The same model with torch.nn.LSTM and torch's own loss."""
    lstm = nn.LSTM(4, 5).double()
    lstm.load_state_dict(model.truncated.core.state_dict())
    logits = model.readout(lstm(model.encoder(batch.x))[0])
    loss = nn.CrossEntropyLoss(reduction="none")
    return loss(logits.transpose(1, 2), batch.y)


@pytest.mark.parametrize("truncation", [1, 3, 9, 20])
def test_nats_are_those_of_plain_torch(truncation):
    model, batch = make_model(truncation=truncation).double(), batch_of()
    nats, _, (cut,) = model(batch, model.initial_state(4))
    torch.testing.assert_close(nats, nats_in_plain_torch(model, batch))
    assert len(cut.end) == -(-9 // truncation)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", [symbol_nats, bit_nats, squared_error])
def test_a_loss_is_in_float32_whatever_the_outputs_are(device, loss, dtype):
    """Autocast on a GPU would leave log-probabilities in 16 bits: one in 256 of each lost."""
    torch.manual_seed(0)
    outputs = (3 * torch.randn(5, 4, 6)).to(dtype)
    y = torch.randint(6, (5, 4)) if loss is symbol_nats else torch.rand(5, 4, 6).round()
    outputs.requires_grad_()
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        nats = loss(outputs, y)
    assert nats.dtype == loss(outputs, y).dtype == torch.float32
    wide = outputs.detach().double().requires_grad_()
    expected = loss(wide, y if loss is symbol_nats else y.double())
    torch.testing.assert_close(nats.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    nats.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(outputs.grad.double(), wide.grad, rtol=2**-8, atol=1e-6)


def test_the_state_of_one_batch_goes_on_in_the_next():
    model, batch = make_model().double(), batch_of()
    whole, end, _ = model(batch, model.initial_state(4))
    state, nats = model.initial_state(4), []
    for start in range(0, 9, 4):
        piece = Batch(batch.x[start : start + 4], batch.y[start : start + 4])
        part, state, _ = model(piece, state, start)
        nats.append(part)
    torch.testing.assert_close(torch.cat(nats), whole)
    torch.testing.assert_close(state, end)
    assert not state.requires_grad


def test_a_target_without_weight_costs_nothing():
    model = make_model()
    weight = (torch.arange(36) % 3 > 0).float().view(9, 4)
    whole = model(batch_of(), model.initial_state(4))[0]
    nats = model(batch_of(weight=weight), model.initial_state(4))[0]
    assert torch.equal(nats, whole * weight)


def test_final_says_that_nothing_comes_from_beyond():
    model = make_model()
    cut = model(batch_of(final=True), model.initial_state(4))[2][0]
    assert cut.chunks.final is True and not cut.synthetic[-1].any() and cut.synthetic[0].any()


@pytest.mark.parametrize("estimator", ["dni", "none"])
def test_the_parameters_are_the_core_s_and_the_estimator_s(estimator):
    model = make_model(estimator)
    core, estimating = model.core_parameters(), model.estimator_parameters()
    assert {*map(id, core)}.isdisjoint(map(id, estimating))
    assert {*map(id, core), *map(id, estimating)} == {*map(id, model.parameters())}
    assert len(core) == 1 + 4 + 2 and len(estimating) == (4 if estimator == "dni" else 0)


def test_dropout_masks_the_inputs_and_the_outputs_of_the_core():
    model, seen = make_model(dropout=0.5), {}
    nn.init.ones_(model.encoder.weight)
    model.truncated.register_forward_pre_hook(lambda _, given: seen.update(core=given[0]))
    model.truncated.register_forward_hook(lambda *given: seen.update(output=given[2][0]))
    model.readout.register_forward_pre_hook(lambda _, given: seen.update(readout=given[0]))
    batch = batch_of(steps=50)
    model(batch, model.initial_state(4))
    assert set(seen["core"].unique().tolist()) == {0.0, 2.0}
    assert 0.4 < (seen["core"] == 0).float().mean() < 0.6
    kept = seen["readout"] != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(seen["readout"][kept], 2 * seen["output"][kept])
    model.eval()
    model(batch, model.initial_state(4))
    assert bool((seen["core"] == 1).all()) and torch.equal(seen["readout"], seen["output"])


def test_dropout_follows_the_global_generator():
    model, batch = make_model(dropout=0.3), batch_of()

    def nats(seed):
        torch.manual_seed(seed)
        return model(batch, model.initial_state(4))[0]

    assert torch.equal(nats(3), nats(3)) and not torch.equal(nats(3), nats(4))


def test_step_by_step_is_the_whole_batch():
    model, batch, found = make_model(dropout=0.5).double().eval(), batch_of(), []
    state = model.initial_state(4)
    for t, x in enumerate(batch.x):
        logits, state = model.step(x, state, t)
        found.append(symbol_nats(logits[None], batch.y[t : t + 1]))
    torch.testing.assert_close(torch.cat(found), model(batch, model.initial_state(4))[0])


def test_the_losses_are_torch_s():
    logits, y = torch.randn(3, 2, 5), torch.randint(0, 5, (3, 2))
    assert symbol_nats(logits, y).shape == (3, 2)
    expected = nn.CrossEntropyLoss(reduction="sum")(logits.reshape(6, 5), y.reshape(6))
    torch.testing.assert_close(symbol_nats(logits, y).sum(), expected)
    bits = torch.randint(0, 2, (3, 2, 5)).float()
    assert bit_nats(logits, bits).shape == (3, 2)
    expected = nn.BCEWithLogitsLoss(reduction="sum")(logits, bits)
    torch.testing.assert_close(bit_nats(logits, bits).sum(), expected)


@pytest.mark.parametrize("training", [True, False])
def test_measure_is_the_mean_over_every_target_whatever_the_call_s_length(training):
    model = make_model(dropout=0.5).double().train(training)
    stream = TextStream(text(50), 4, 0)
    found = [measure(model, stream, steps) for steps in (1, 5, 100)]
    assert model.training is training
    model.eval()
    nats = model(TextStream(text(50), 4, 0).next(None), model.initial_state(4))[0].sum().item()
    for metrics in found:
        assert metrics["targets"] == 50
        assert metrics["bits"] == pytest.approx(nats / 50 / math.log(2), rel=1e-12)


def test_measure_on_one_row_is_the_text_in_one_go():
    """The bits of a text are those of torch.nn.LSTM reading it from a first symbol."""
    model, symbols = make_model().double(), text(40)
    batch = Batch(torch.cat([torch.tensor([3]), symbols[:-1]])[:, None], symbols[:, None])
    expected = nats_in_plain_torch(model, batch).mean().item() / math.log(2)
    assert measure(model, TextStream(symbols, 1, 3), 7)["bits"] == pytest.approx(expected)


def test_what_does_not_fit_is_named():
    core = LSTM(4, 5)
    parts = nn.Embedding(SYMBOLS, 4), Truncated(core, 2, ZeroGradient()), nn.Linear(5, SYMBOLS)
    with pytest.raises(TypeError, match="truncated must be a dnirnn.Truncated; got LSTM"):
        SequenceModel(parts[0], core, parts[2], symbol_nats)
    for dropout in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="dropout must be a probability"):
            SequenceModel(*parts, symbol_nats, dropout)
