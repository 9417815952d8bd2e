"""Fidelity: an oracle's is 1, and measuring changes nothing."""

import math

import pytest
import torch
from small_runs import (
    Recall,
    assert_equal_runs,
    make_model,
    make_trainer,
    rows_of,
    small_stream,
    text,
)
from torch import nn

from dnirnn import LSTM, BPLambda, SyntheticGradient, TrueGradient, Truncated, ZeroGradient
from dnirnn.data import Batch, TextStream
from dnirnn.fidelity import fidelity
from dnirnn.model import SequenceModel, symbol_nats

FIGURES = ("cosine", "norm_ratio", "relative_error")


def stretch(steps=12, final=False) -> Batch:
    batch = TextStream(text(4 * 40), 4, 0).next(steps)
    return batch._replace(final=final)


def with_estimator(estimator, truncation=3) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(
        nn.Embedding(7, 4),
        Truncated(LSTM(4, 5), truncation, estimator),
        nn.Linear(5, 7),
        symbol_nats,
    ).double()


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("lookahead", [None, 1, 2])
@pytest.mark.parametrize("discount", [0.3, 1.0])
def test_the_oracle_s_is_1(lookahead, final, discount):
    oracle = TrueGradient(lookahead, discount=discount)
    model, batch = with_estimator(oracle), stretch(final=final)

    def run():
        nats, _, interfaces = model(batch, model.initial_state(4))
        return nats.sum(), interfaces

    oracle.look(run)
    found = fidelity(model, [batch], lookahead)
    assert [found[name] for name in FIGURES] == pytest.approx([1, 1, 0], abs=1e-7)
    assert found["boundaries"] == (3 if final else 4 - (lookahead or 1))
    if discount < 1 and (lookahead or 4) > 1:
        assert found["cosine_1"] < 1 - 1e-6 and found["relative_error_1"] > 1e-3


@pytest.mark.parametrize("options", [
    dict(), dict(context_size=4), dict(dense=True), dict(normalise=True), dict(trace_decay=0.5),
    dict(auxiliary=1.0),
], ids=str)  # fmt: skip
def test_it_is_what_backpropagation_says(options):
    """Against G by plain autograd through torch.nn.LSTM: sent to the end, chunks discounted."""
    estimator = SyntheticGradient(10, (6,), 0.1, 0.4, **options)
    nn.init.normal_(estimator.layers[-1].weight)
    model, batch = with_estimator(estimator), stretch(12, final=True)
    if options.get("normalise"):
        estimator.mean_square.copy_(torch.tensor([0.5, 0.1]))
    lstm = nn.LSTM(4, 5).double()
    lstm.load_state_dict(model.truncated.core.state_dict())
    x = model.encoder(batch.x).detach()
    said, true, true_1 = [], [], []
    state = (torch.zeros(1, 4, 5).double(), torch.zeros(1, 4, 5).double())
    for begin in (3, 6, 9):
        state = lstm(x[begin - 3 : begin], state)[1]
        state = tuple(part.detach().requires_grad_() for part in state)
        output, _ = lstm(x[begin:], state)
        nats = symbol_nats(model.readout(output), batch.y[begin:])
        ahead = torch.arange(12 - begin) // 3
        for discount, kept in ((0.4, true), (1.0, true_1)):
            loss = (discount ** ahead[:, None] * nats).sum()
            kept.append(torch.cat(torch.autograd.grad(loss, state, retain_graph=True), -1)[0])
        told = [x[begin]] if options.get("context_size") else []
        said.append(estimator(torch.cat(state, -1)[0].detach(), *told).detach())
    found = fidelity(model, [batch])
    g = torch.stack(said).flatten()
    for suffix, truth in (("", true), ("_1", true_1)):
        truth = torch.stack(truth).flatten()
        expected = (
            torch.nn.functional.cosine_similarity(g, truth, 0),
            g.norm() / truth.norm(),
            (g - truth).norm() / truth.norm(),
        )
        expected = pytest.approx([float(value) for value in expected])
        assert [found[name + suffix] for name in FIGURES] == expected


def test_stretches_are_taken_together():
    estimator = SyntheticGradient(10)
    nn.init.normal_(estimator.layers[-1].weight)
    model = with_estimator(estimator)
    batches = [stretch(12), stretch(9)._replace(x=text(36, 5).view(9, 4))]
    apart = [fidelity(model, [batch], 1) for batch in batches]
    both = fidelity(model, batches, 1)
    assert both["boundaries"] == 3 + 2
    low, high = sorted(found["norm_ratio"] for found in apart)
    assert low < both["norm_ratio"] < high


def test_what_says_nothing_has_none():
    found = fidelity(with_estimator(ZeroGradient()), [stretch()])
    assert [found[name] for name in FIGURES] == [0, 0, 1]
    found = fidelity(with_estimator(BPLambda(10, 4)), [stretch()])
    assert [found[name + "_1"] for name in FIGURES] == [0, 0, 1]


def test_where_nothing_is_lost_there_is_nothing_to_compare():
    batch = stretch()._replace(weight=torch.zeros(12, 4).double())
    found = fidelity(with_estimator(SyntheticGradient(10)), [batch])
    assert all(found[name] is None for name in FIGURES)


def test_a_stretch_that_is_too_short_is_refused():
    model = with_estimator(SyntheticGradient(10))
    with pytest.raises(ValueError, match="and 4 chunks of 3 steps after it; got 12 steps"):
        fidelity(model, [stretch()], 4)
    with pytest.raises(ValueError, match="got 3 steps"):
        fidelity(model, [stretch(3, final=True)])


def test_it_leaves_the_model_as_it_was():
    model = with_estimator(SyntheticGradient(10, auxiliary=1.0, normalise=True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    estimator = model.truncated.estimator
    fidelity(model, [stretch()])
    assert model.truncated.estimator is estimator
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# In a run


@pytest.mark.parametrize("make_stream", [small_stream, Recall])
def test_measuring_changes_no_bit_of_a_run(tmp_path, make_stream):
    def measured(model):
        torch.rand(7)  # numbers that a careless measurement might draw
        return fidelity(model, [stretch()], 2)

    for name, options in (
        ("with", dict(fidelity_every=3, fidelity=measured)),
        ("without", dict()),
    ):
        make_trainer(
            tmp_path / name, model=make_model(dropout=0.2), stream=make_stream(), updates=10,
            evaluate_every=4, **options,
        ).run()  # fmt: skip
    rows = [row for row in rows_of(tmp_path / "with") if row["kind"] == "fidelity"]
    assert [row["update"] for row in rows] == [3, 6, 9]
    assert all(math.isfinite(row[name]) for row in rows for name in FIGURES)
    log = tmp_path / "with" / "log.jsonl"
    lines = [line for line in log.read_text().splitlines(True) if '"fidelity"' not in line]
    log.write_text("".join(lines))
    assert_equal_runs(tmp_path / "with", tmp_path / "without")


def test_every_so_often_needs_something_to_measure(tmp_path):
    with pytest.raises(ValueError, match="fidelity must be given"):
        make_trainer(tmp_path, updates=1, fidelity_every=3)
