"""char-lm: the model, an evaluation that counts every symbol once, sampling."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_texts import options_for, text_of

from dnirnn import backward
from dnirnn.data import Vocabulary
from dnirnn.tasks import char_lm
from dnirnn.tasks.char_lm import CharLMOptions, Evaluation, sample

# The model


@pytest.mark.parametrize("core", ["lstm", "torch-lstm", "torch-gru", "torch-rnn"])
@pytest.mark.parametrize("estimator_hidden", [None, ("linear",), (3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_network_takes_a_step(tiny, core, estimator_hidden, dtype):
    changes = dict(estimator="dni", estimator_hidden=estimator_hidden)
    options = options_for(tiny, core=core, dtype=dtype, layers=2, **changes)
    task = char_lm.build(options)
    batch = task.stream.next(10)
    nats, state, interfaces = task.model(batch, task.model.initial_state(4))
    backward(nats.sum(), interfaces)
    assert nats.shape == (10, 4) and state.dtype == torch.float32
    gradients = [parameter.grad for parameter in task.model.parameters()]
    assert all(g is not None and g.dtype == torch.float32 for g in gradients)
    assert all(g.isfinite().all() for g in gradients)


def test_bfloat16_stays_near_float32(tiny):
    bits = []
    for dtype in ("float32", "bfloat16"):
        task = char_lm.build(options_for(tiny, dtype=dtype, hidden=32))
        bits.append(task.evaluate(task.model)["bits"])
    assert bits[0] == pytest.approx(bits[1], abs=0.02) and bits[0] != bits[1]


def test_the_seed_decides_the_weights(tiny):
    def weights(seed):
        model = char_lm.build(options_for(tiny, seed=seed)).model
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_configuration_restores_the_model(tiny):
    task = char_lm.build(options_for(tiny, optimizer_options=(("betas", (0.8, 0.9)),)))
    model, vocabulary = char_lm.restore(task.config)
    model.load_state_dict(task.model.state_dict())
    assert vocabulary.characters == "\n cehiklot"
    assert task.evaluate(model) == task.evaluate(task.model)


# Evaluation


@given(count=st.integers(1, 300), rows=st.integers(1, 9), warm_up=st.integers(1, 20))
def test_every_symbol_is_a_target_once_and_the_first_follows_a_newline(count, rows, warm_up):
    symbols = torch.arange(1, count + 1)
    evaluation = Evaluation(symbols, 0, rows, warm_up)
    *parts, counts = evaluation.window(0, evaluation.length)
    x, y = (part.t()[counts.t()] for part in parts)
    assert torch.equal(y, symbols)
    assert torch.equal(x, symbols - 1)
    before = evaluation.window(-warm_up, 0, slice(1, None))[0]
    scored = counts[0, 1:]
    assert torch.equal(before[-1][scored] + 1, parts[0][0, 1:][scored])


@settings(max_examples=8)
@given(count=st.integers(2, 200), steps=st.integers(1, 60), seed=st.integers(0, 3))
def test_one_row_is_the_loop_over_steps(tiny, count, steps, seed):
    task = char_lm.build(options_for(tiny, seed=seed))
    model, symbols = task.model, Vocabulary.of(text_of(4000)).encode(text_of(count, seed))
    state, x, nats = model.initial_state(1), torch.zeros(1, dtype=torch.long), 0.0
    with torch.no_grad():
        for t, y in enumerate(symbols):
            logits, state = model.step(x, state, t)
            nats -= float(torch.log_softmax(logits.double(), -1)[0, y])
            x = y[None]
    bits = Evaluation(symbols, 0, rows=1)(model, steps)["bits"]
    assert bits == pytest.approx(nats / count / math.log(2), rel=1e-5)


def test_parallel_rows_are_one_pass_to_within_what_the_warm_up_forgets(tiny):
    task = char_lm.build(options_for(tiny, hidden=16))
    symbols = Vocabulary.of(text_of(4000)).encode(text_of(4000, seed=1))
    whole = Evaluation(symbols, 0, rows=1)(task.model)["bits"]
    for rows in (2, 7, 15):
        evaluation = Evaluation(symbols, 0, rows, warm_up=64)
        assert len(evaluation.start) == rows
        assert evaluation(task.model)["bits"] == pytest.approx(whole, abs=1e-5)


def test_an_evaluation_leaves_no_trace(tiny):
    task = char_lm.build(options_for(tiny, dropout=0.5))
    task.model.train()
    rng = torch.get_rng_state()
    assert task.evaluate(task.model) == task.evaluate(task.model)
    assert task.model.training and torch.equal(rng, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in task.model.parameters())


# Sampling


@pytest.fixture
def writer(tiny):
    task = char_lm.build(options_for(tiny))
    with torch.no_grad():
        task.model.readout.weight.mul_(20)
    return task.model, Vocabulary.from_json(task.config["vocabulary"])


def test_a_sample_is_decided_by_its_seed(writer):
    one, same, other = (sample(*writer, 50, seed=seed) for seed in (1, 1, 2))
    assert one == same != other and len(one) == 50


def test_higher_temperature_gives_more_variety(writer):
    def entropy(temperature):
        text = sample(*writer, 600, temperature)
        shares = [text.count(c) / len(text) for c in set(text)]
        return -sum(share * math.log2(share) for share in shares)

    cold, warm, hot = (entropy(temperature) for temperature in (0.05, 1.0, 20.0))
    assert cold < warm < hot
    assert hot == pytest.approx(math.log2(10), abs=0.1)


def test_temperature_zero_takes_the_likeliest(writer):
    assert sample(*writer, 40, 0.0, seed=1) == sample(*writer, 40, 0.0, seed=2)
    assert sample(*writer, 40, 0.0) == sample(*writer, 40, 1e-6)


def test_a_sample_goes_on_from_its_prime(writer):
    """The likeliest text, cut anywhere and given as prime, goes on as it did."""
    text = sample(*writer, 30, 0.0)
    assert sample(*writer, 20, 0.0, prime=text[:10]) == text[10:]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(length=0), "length must be at least 1"),
        (dict(temperature=-1.0), "temperature must be finite and at least 0; got -1.0"),
        (dict(temperature=math.nan), "temperature must be finite"),
        (dict(prime="tack"), "prime: .*'a' at offset 2"),
    ],
)
def test_bad_samples(writer, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(*writer, **(dict(length=5) | arguments))


def test_options_are_checked_when_they_are_made():
    dni = CharLMOptions(estimator="dni")
    assert dataclasses.replace(dni, estimator_hidden=[3]).estimator_hidden == (3,)
    with pytest.raises(ValueError, match="--truncation must be at least 1; got 0"):
        CharLMOptions(truncation=0)
    with pytest.raises(ValueError, match="--lr must be finite; got nan"):
        CharLMOptions(lr=math.nan)
    with pytest.raises(ValueError, match="--core must be one of .*, lstm, .*; got 'wheel'"):
        CharLMOptions(core="wheel")


@pytest.mark.parametrize("embedding", [4, 8])
def test_a_tied_readout_reads_by_the_vectors_of_the_input(tiny, embedding):
    task = char_lm.build(options_for(tiny, tied=True, embedding=embedding))
    model, encoder = task.model, task.model.encoder.weight
    outputs = torch.randn(3, 2, 8)
    said = outputs
    if embedding != 8:
        said = outputs @ model.readout.project.weight.T
    torch.testing.assert_close(model.readout(outputs), said @ encoder.T + model.readout.bias)
    plain = char_lm.build(options_for(tiny, embedding=embedding)).model
    saved = len(encoder) * 8 - (0 if embedding == 8 else 8 * embedding)
    counts = [sum(p.numel() for p in one.core_parameters()) for one in (plain, model)]
    assert counts[0] - counts[1] == saved
    nats, _, interfaces = model(task.stream.next(5), model.initial_state(4))
    backward(nats.sum(), interfaces)
    assert encoder.grad.abs().sum(1).count_nonzero() == len(encoder), "all symbols are read by"
    again, _ = char_lm.restore(task.config)
    again.load_state_dict(model.state_dict())
    assert again.readout.embedding.weight is again.encoder.weight
