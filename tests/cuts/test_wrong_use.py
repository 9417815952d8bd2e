"""What a person may write by habit around a Truncated: it is right, or refused with what to write."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Fitting, Problem, assert_close, gradients, own_loss, problems
from torch.utils.checkpoint import checkpoint

from dnirnn import (
    LSTM,
    BPLambda,
    LeastSquares,
    SyntheticGradient,
    Truncated,
    ZeroGradient,
    backward,
)

PROBLEM = Problem(steps=5, batch=3, truncation=2, input_size=2, hidden_size=3, seed=0)
WRITE = r"write dnirnn\.backward\(loss, interfaces\)"


def make(seed: int = 0, estimator=None):
    """(truncated, case), float64, with an estimator that says something."""
    torch.manual_seed(seed)
    core = LSTM(2, 3).double()
    estimator = estimator or Fitting((), 0.5, 0.5, 1).estimator(core)
    return Truncated(core, 2, estimator), PROBLEM.case(core)


def call(truncated, case):
    output, _, interfaces = truncated(case.x, case.state)
    return own_loss(output, case.y), interfaces


# A backward pass that is not dnirnn's.


def test_a_plain_backward_is_refused():
    loss, _ = call(*make())
    with pytest.raises(RuntimeError, match=WRITE):
        loss.backward()


@pytest.mark.parametrize("knobs", [dict(dense=True), dict(trace_decay=0.5), dict(discount=1.0)])
def test_a_plain_backward_is_refused_with_every_kind_of_target(knobs):
    loss, _ = call(*make(estimator=SyntheticGradient(6, **knobs).double()))
    with pytest.raises(RuntimeError, match=WRITE):
        loss.backward()


@pytest.mark.parametrize("knobs", [{}, dict(dense=True), dict(trace_decay=0.5)], ids=str)
def test_gradients_asked_for_without_the_cut_are_warned_of(knobs, recwarn):
    truncated, case = make(estimator=SyntheticGradient(6, **knobs).double())
    weights = list(truncated.core.parameters())
    for ask in (
        lambda loss: torch.autograd.grad(loss, weights, retain_graph=True),
        lambda loss: loss.backward(inputs=weights, retain_graph=True),
    ):
        loss, interfaces = call(truncated, case)
        with pytest.warns(UserWarning, match="no synthetic gradient is in what it returns"):
            ask(loss)
        torch.autograd.grad(loss, interfaces[0].probe, retain_graph=True)  # who knows of it
        backward(loss, interfaces, reduction="sum")
    assert not recwarn.list


def test_one_interface_of_several_forgotten_is_refused():
    (first, case), (second, _) = make(0), make(1)
    loss, interfaces = call(first, case)
    other, _ = call(second, case)
    with pytest.raises(RuntimeError, match=WRITE):
        backward(loss + other, interfaces)


def test_an_interface_given_twice_is_refused():
    loss, interfaces = call(*make())
    with pytest.raises(ValueError, match="twice"):
        backward(loss, [*interfaces, *interfaces])


def test_reentrant_checkpointing_is_refused_and_the_other_is_right():
    truncated, case = make()
    backward(*call(truncated, case))
    expected = gradients(truncated)
    for reentrant in (True, False):
        truncated.zero_grad()
        x = case.x.clone().requires_grad_()
        output, _, cuts = checkpoint(truncated, x, case.state, use_reentrant=reentrant)
        loss = own_loss(output, case.y)
        if not reentrant:
            backward(loss, cuts)
            assert_close(gradients(truncated), expected)
            continue
        with pytest.raises(ValueError, match="use_reentrant=False"):
            backward(loss, cuts)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            loss.backward()


def test_who_does_it_right_hears_nothing(recwarn):
    """Evaluation, calls that nobody goes back from, two models in one loss, plain truncation."""
    truncated, case = make()
    with torch.no_grad():
        call(truncated, case)
    call(truncated, case)
    loss, interfaces = call(truncated, case)
    other, more = call(make(1)[0], case)
    backward(loss + other, [*interfaces, *more])
    loss, interfaces = call(Truncated(truncated.core, 2, ZeroGradient()), case)
    loss.backward()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda loss, cuts: backward(1.0, cuts), TypeError, "loss must be .*got float"),
        (lambda loss, cuts: backward(loss, cuts[0]), TypeError, "interfaces .*got Interface"),
        (lambda loss, cuts: backward(loss, [loss]), TypeError, "interfaces .*got Tensor"),
        (lambda loss, cuts: backward(loss, cuts, "1"), TypeError, "unit must be .*got '1'"),
        (lambda loss, cuts: backward(loss, cuts, 1.0, reduction="sum"), ValueError, "give one"),
        (lambda loss, cuts: backward(loss, cuts, reduction="none"), ValueError, "got 'none'"),
        (lambda loss, cuts: backward(loss, cuts, micro_batches=0), ValueError, "got 0"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_lost(wrong, error, words):
    truncated, case = make()
    loss, cuts = call(truncated, case)
    with pytest.raises(error, match=words):
        wrong(loss, cuts)
    backward(loss, cuts)


# Units without arithmetic.


@given(problem=problems(), discount=st.sampled_from([0.5, 1.0]))
def test_a_mean_is_the_sum_in_its_own_units(path, problem, discount):
    torch.manual_seed(problem.seed)
    core = LSTM(problem.input_size, problem.hidden_size).double()
    case, estimator = problem.case(core), Fitting((), 0.5, discount, 1).estimator(core)
    truncated = Truncated(core, problem.truncation, estimator)
    count = problem.steps * problem.batch

    def run(**how):
        truncated.zero_grad()
        output, _, cuts = truncated(case.x, case.state)
        loss = own_loss(output, case.y)
        error = backward(loss / count if how else loss, cuts, **how)["estimator_error"]
        return gradients(core), gradients(estimator), error

    core_sum, estimator_sum, error_sum = run()
    core_mean, estimator_mean, error_mean = run(reduction="mean")
    assert_close(core_mean, [g / count for g in core_sum])
    assert_close(estimator_mean, estimator_sum)
    assert_close(error_mean, error_sum)


def test_calls_of_different_sizes_have_no_one_mean():
    truncated, case = make()
    loss, cuts = call(truncated, case)
    output, _, more = truncated(case.x[:3], case.state)
    with pytest.raises(ValueError, match=r"different sizes \[9, 15\].*give unit"):
        backward(loss + output.mean(), [*cuts, *more], reduction="mean")


def test_a_loss_that_is_seen_to_be_a_mean_is_not_silently_a_sum(recwarn):
    truncated, case = make()

    def losses():
        output, _, cuts = truncated(case.x, case.state)
        yield (output - case.y).square().mean(), cuts
        output, _, cuts = truncated(case.x, case.state)
        yield torch.nn.functional.mse_loss(output, case.y), cuts
        output, _, cuts = truncated(case.x, case.state)
        symbols = torch.zeros(output.shape[:2], dtype=torch.int64).flatten()
        yield torch.nn.functional.cross_entropy(output.flatten(0, 1), symbols), cuts
        output, _, cuts = truncated(case.x, case.state)
        yield output.square().mean() / 4, cuts
        output, _, cuts = truncated(case.x, case.state)
        yield 0.5 * output.square().mean() + truncated.core.weight_hh_l0.square().sum(), cuts

    for loss, cuts in losses():
        with pytest.warns(UserWarning, match='reduction="mean"'):
            backward(loss, cuts)
    for loss, cuts in losses():
        backward(loss, cuts, reduction="mean")
    for loss, cuts in losses():
        backward(loss, cuts, unit=1 / 15)
    assert not recwarn.list


def test_a_loss_that_is_seen_to_be_scaled_is_not_silently_taken(recwarn):
    truncated, case = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for reduction in ("sum", "mean"):
        loss, cuts = call(truncated, case)
        with pytest.warns(UserWarning, match="the loss looks scaled.*scaler=scaler"):
            backward(scaler.scale(loss), cuts, reduction=reduction)
    loss, cuts = call(truncated, case)
    backward(scaler.scale(loss), cuts, unit=16.0)
    loss, cuts = call(truncated, case)
    backward(0.5 * loss, cuts, reduction="sum")
    assert not recwarn.list


def test_micro_batches_are_the_whole_batch():
    truncated, case = make()
    case = case._replace(x=torch.cat([case.x] * 2, 1), y=torch.randn(5, 6, 3).double())
    case = case._replace(state=torch.randn(6, 6).double())
    updates = []
    for pieces in (1, 2, 3):
        truncated.zero_grad()
        for rows in torch.arange(6).chunk(pieces):
            output, _, cuts = truncated(case.x[:, rows], case.state[rows])
            loss = (output - case.y[:, rows]).square().sum(-1).mean()
            backward(loss, cuts, reduction="mean", micro_batches=pieces)
        updates.append(gradients(truncated))
    assert_close(updates[1], updates[0])
    assert_close(updates[2], updates[0])


def scaled(truncated, case, scaler, optimizer):
    optimizer.zero_grad()
    output, _, cuts = truncated(case.x, case.state)
    backward((output - case.y).square().sum(-1).mean(), cuts, reduction="mean", scaler=scaler)
    scaler.step(optimizer)
    scaler.update()


def test_a_scaler_changes_nothing_but_the_range_of_gradients():
    updated = []
    for enabled in (False, True):
        truncated, case = make(2)
        optimizer = torch.optim.Adam(truncated.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=enabled)
        for _ in range(3):
            scaled(truncated, case, scaler, optimizer)
        updated.append([p.detach().clone() for p in truncated.parameters()])
    assert_close(updated[1], updated[0], 1e-9)


@pytest.mark.parametrize(
    "make_estimator",
    [
        lambda: SyntheticGradient(6, normalise=True),
        lambda: LeastSquares(6, solve_every=1),
        lambda: BPLambda(6, 3),
    ],
)
def test_where_a_scaled_gradient_is_not_finite_nothing_changes(make_estimator):
    truncated, case = make(estimator=make_estimator().double())
    optimizer = torch.optim.SGD(truncated.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e30, growth_factor=1.1)
    scaled(truncated, case, scaler, optimizer)
    before = [value.clone() for value in truncated.state_dict().values()]
    case.y[0, 0, 0] = torch.inf
    scaled(truncated, case, scaler, optimizer)
    for after, value in zip(truncated.state_dict().values(), before):
        assert torch.equal(after, value)


# Rows that are not to be taught.


@pytest.mark.parametrize("dense", [False, True])
def test_without_a_terminal_target_a_reset_teaches_nothing_either(path, dense):
    """A row's old sequence ends where it is reset at a chunk's first step: no zero is taught there."""
    estimator = SyntheticGradient(6, dense=dense, terminal_target=False).double()
    truncated, case = make(estimator=estimator)
    reset = torch.zeros(5, 3, dtype=torch.bool)
    reset[2, 1] = reset[0, 0] = True
    output, _, (cut,) = truncated(case.x, case.state, reset=reset)
    backward(own_loss(output, case.y), [cut])
    rows = ~reset if dense else ~reset[::2]
    # At first it says zero: the bias's gradient is minus the mean of the targets that count.
    assert_close(estimator.layers[0].bias.grad, -cut.probe.grad[rows].mean(0))
    assert not cut.probe.grad[~rows].any()
