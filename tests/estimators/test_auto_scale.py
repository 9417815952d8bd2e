"""AutoScale: injects what predictions have earned; Reader: what is fitted, and what it reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import make_model, small_stream
from strategies import assert_close, seeds
from torch import nn

from dnirnn import (
    LSTM,
    AutoScale,
    BPLambda,
    LeastSquares,
    Reader,
    SyntheticGradient,
    Truncated,
    ZeroGradient,
    backward,
)
from dnirnn.data import Batch
from dnirnn.tasks.copy import CopyOptions, build
from dnirnn.training.feed import read_on


def wild(state_size=6, context_size=0, size=1.0) -> SyntheticGradient:
    """An estimator that says much, and has learned nothing."""
    made = SyntheticGradient(state_size, discount=0.5, context_size=context_size).double()
    nn.init.normal_(made.layers[-1].weight, std=size)
    return made


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    decay=st.sampled_from([0.0, 0.5, 0.995]),
    weighed=st.booleans(),
    seed=seeds,
)
def test_the_scale_is_the_regression_of_targets_on_predictions_made_before(
    rows, decay, weighed, seed
):
    torch.manual_seed(seed)
    estimator = AutoScale(wild(3), decay)
    a = b = 0.0
    for count in rows:
        entered, target = torch.randn(2, count, 3, dtype=torch.float64)
        weight = torch.randint(0, 2, (count,)).double() if weighed else None
        said = estimator(entered).detach()
        kept = said if weight is None else said * weight[:, None]
        a = decay * a + (1 - decay) * float((kept * target).sum())
        b = decay * b + (1 - decay) * float((kept * said).sum())
        estimator.accumulate(entered, target, weight=weight)
        with torch.no_grad():
            for parameter in estimator.parameters():
                parameter -= 0.1 * parameter.grad
    assert estimator.scale == pytest.approx(min(1, max(0, a / b)) if b else 0, abs=1e-12)


@given(seed=seeds, size=st.sampled_from([0.5, 1.0, 3.0]))
def test_what_is_right_but_for_its_size_is_shrunk_to_size(seed, size):
    torch.manual_seed(seed)
    inner = wild(4)
    estimator = AutoScale(inner)
    entered = torch.randn(5, 4, dtype=torch.float64)
    estimator.accumulate(entered, size * inner(entered).detach())
    assert estimator.scale == pytest.approx(min(1, size))


def test_nothing_is_injected_before_it_is_earned_and_what_was_is_scaled():
    torch.manual_seed(0)
    core = LSTM(2, 3).double()
    x, state = torch.randn(6, 4, 2, dtype=torch.float64), core.initial_state(4)
    found = []
    estimators = AutoScale(wild()), ZeroGradient()
    for estimator in estimators:
        core.zero_grad()
        output, _, interfaces = Truncated(core, 2, estimator)(x, state)
        backward(output.square().sum(), interfaces)
        found.append([parameter.grad.clone() for parameter in core.parameters()])
    assert_close(*found)
    estimators[0].agreement.copy_(torch.tensor([3.0, 4.0]))
    _, _, (cut,) = Truncated(core, 2, estimators[0])(x, state)
    said = estimators[0](cut.end).detach()
    assert_close(cut.synthetic, 0.75 * said)
    assert_close(cut.estimator.bootstrap(cut), 0.5 * 0.75 * said)


def test_it_sleeps_where_it_earns_nothing_and_wakes_up():
    core = LSTM(2, 3)
    estimator = AutoScale(wild().float(), look_every=4, patience=3)
    truncated, x = Truncated(core, 2, estimator), torch.randn(4, 1, 2)

    def used() -> str:
        _, _, (cut,) = truncated(x, core.initial_state(1))
        return "." if cut.synthetic is None else "x"

    assert "".join(used() for _ in range(3)) == "xxx"  # nothing was fitted: no patience is used up
    estimator.agreement.copy_(torch.tensor([-1.0, 1.0]))
    estimator.fits.fill_(3)
    assert "".join(used() for _ in range(9)) == "x...x...x"
    estimator.agreement.copy_(torch.tensor([0.1, 1.0]))
    assert used() == "x"
    with torch.no_grad():
        estimator.agreement.zero_()
        assert used() == "."
        assert int(estimator.calls) == 13  # an evaluation does not count


def test_an_estimator_thrown_off_does_no_harm():
    """The instability in small: predictions a hundred times too large, at a fixed scale and at auto."""
    grown = []
    for scale in ("fixed", "auto"):
        torch.manual_seed(0)
        core = LSTM(2, 8)
        inner = SyntheticGradient(core.state_size, scale=1.0, discount=0.5)
        estimator = inner if scale == "fixed" else AutoScale(inner, patience=10)
        nn.init.normal_(inner.layers[-1].weight, std=30)
        truncated = Truncated(core, 2, estimator)
        descent = torch.optim.SGD(core.parameters(), 0.01)
        state, before = core.initial_state(4), [p.clone() for p in core.parameters()]
        for _ in range(20):
            output, state, interfaces = truncated(torch.randn(4, 4, 2), state)
            descent.zero_grad()
            backward((output - 0.1).square().sum() / 16, interfaces, 1 / 16)
            descent.step()
        moved = sum(float((p.detach() - q.detach()).square().sum()) for p, q in zip(core.parameters(), before))
        grown.append(moved**0.5)
    assert grown[1] < 0.1 * grown[0]


@given(
    reads=st.integers(1, 4),
    rows=st.integers(1, 4),
    clip=st.sampled_from([None, 0.5, 3.0]),
    weighed=st.booleans(),
    seed=seeds,
)
def test_a_reader_descends_on_the_clipped_error(reads, rows, clip, weighed, seed):
    """Against autograd through forward, in units of the mean norm."""
    torch.manual_seed(seed)
    reader = Reader(3, reads, 2, 4, (5,), clip=clip).double()
    nn.init.normal_(reader.layers[-1].weight)
    reader.accumulate(*torch.randn(2, 2, 3).double(), torch.randn(2, 2 * reads).double())
    reader.zero_grad()
    before = float(reader.unit)
    entered, target = torch.randn(2, rows, 3, dtype=torch.float64)
    context = torch.randn(rows, reads * 2, dtype=torch.float64)
    weight = torch.randint(0, 2, (rows,)).double() if weighed else torch.ones(rows).double()
    said_error = reader.accumulate(entered, target, context, weight if weighed else None)
    found = [p.grad for p in reader.parameters()]

    count = max(1.0, float(weight.sum()))
    if clip is not None:
        longest = clip * before
        target = torch.stack([t * min(1.0, longest / float(t.norm())) for t in target])
    error = (0.5 * (reader(entered, context) - target).square().sum(1) * weight).sum() / count
    assert_close(said_error, error)
    expected = torch.autograd.grad(error / reader.unit.square(), list(reader.parameters()))
    assert_close(found, list(expected), 1e-9)


def test_a_reader_reads_backwards_and_starts_at_zero():
    reader = Reader(3, 2, 2, 4).double()
    state, context = torch.randn(5, 3).double(), torch.randn(5, 4).double()
    assert not reader(state, context).any()
    _, read = reader.reader(torch.stack([context[:, 2:], context[:, :2]]))
    nn.init.normal_(reader.layers[-1].weight)
    reader.mean_norm.fill_(1)
    assert_close(reader(state, context), reader.layers[-1](torch.cat([state, read[0]], 1)))


@given(reads=st.integers(1, 5), steps=st.integers(1, 5), after=st.integers(1, 6), seed=seeds)
def test_a_model_tells_of_the_next_steps(reads, steps, after, seed):
    model = make_model("none")
    core = model.truncated.core
    model.truncated = Truncated(core, 2, Reader(core.state_size, reads, 4))
    symbols = torch.randint(0, 7, (steps + after, 3), generator=torch.Generator().manual_seed(seed))
    whole = Batch(symbols, symbols)
    batch = whole.steps(0, steps)._replace(following=whole.steps(steps, steps + after))
    context = model.context(batch, model.encoder(batch.x))
    vectors = model.encoder(symbols)
    for t in range(steps + 1):
        for i in range(reads):
            told = context[t, :, 4 * i : 4 * i + 4]
            known = t + i < steps + min(after, reads)
            expected = vectors[t + i] if known else torch.zeros(3, 4)
            assert torch.equal(told, expected)
    with pytest.raises(ValueError, match="following must be given"):
        model.context(batch._replace(following=None), model.encoder(batch.x))


def test_reading_on_leaves_the_stream_where_it_is():
    stream, other = small_stream(), small_stream()
    batch = read_on(stream.next(6), stream, 5)
    other.next(6)
    assert torch.equal(batch.following.x, other.next(5).x)
    assert torch.equal(stream.next(5).x, batch.following.x)


def test_the_options_reach_the_estimator():
    given = dict(bits=1, hidden=4, batch=4, truncation=2, max_length=3, context=("input", "target"))
    made = build(CopyOptions(**given, scale="auto", reads=3, reader=5, estimator_hidden=(6,)))
    estimator = made.model.truncated.estimator
    assert isinstance(estimator, AutoScale) and isinstance(estimator.estimator, Reader)
    assert (estimator.reads, estimator.context_size, estimator.scale) == (3, 9, 0)
    assert estimator.estimator.reader.hidden_size == 5
    for kind in ("dni", "least-squares"):
        made = build(CopyOptions(**given, estimator=kind, reads=2)).model.truncated.estimator
        assert (made.reads, made.context_size) == (2, 6)
    with pytest.raises(ValueError, match="--scale auto goes with"):
        CopyOptions(estimator="bp-lambda", scale="auto")
    with pytest.raises(ValueError, match="--scale auto begins at 0"):
        CopyOptions(scale="auto", warm_up=3)
    with pytest.raises(ValueError, match="--reads goes with --context only; got 2"):
        CopyOptions(reads=2)
    with pytest.raises(ValueError, match="--reader has units of its own"):
        CopyOptions(reader=4, context=("input",), normalise=True)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="estimator must be a dnirnn.GradientEstimator"):
        AutoScale(AutoScale(wild()))
    with pytest.raises(ValueError, match="one that is fitted"):
        AutoScale(ZeroGradient())
    with pytest.raises(ValueError, match="no auxiliary"):
        AutoScale(SyntheticGradient(3, auxiliary=0.5))
    with pytest.raises(ValueError, match="no needs_jacobian"):
        AutoScale(BPLambda(2, 2))
    for wrong in (1.0, -0.1, True, "x"):
        with pytest.raises(ValueError, match="decay must be a number from 0 to below 1"):
            AutoScale(LeastSquares(3), wrong)
    with pytest.raises(ValueError, match="look_every must be an int of at least 1"):
        AutoScale(wild(), look_every=0)
    with pytest.raises(ValueError, match="clip must be positive, or None; got 0"):
        Reader(3, 2, 2, clip=0)
    with pytest.raises(ValueError, match="reads must be an int of at least 1"):
        Reader(3, 0, 2)
