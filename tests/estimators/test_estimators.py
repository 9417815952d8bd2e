"""Estimators: what they predict, how they are fitted, and that a fresh one sends nothing."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, gradients, seeds

from dnirnn import (
    AutoScale,
    BPLambda,
    ByPart,
    Control,
    GradientEstimator,
    LeastSquares,
    SyntheticGradient,
    ZeroGradient,
)

sizes = dict(
    size=st.integers(1, 6),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    rows=st.integers(1, 7),
    seed=seeds,
)


def fitted(size, hidden, seed, **options):
    """An estimator whose every layer is random, the last one too."""
    torch.manual_seed(seed)
    estimator = SyntheticGradient(size, hidden, **options).double()
    for parameter in estimator.parameters():
        torch.nn.init.normal_(parameter)
    return estimator


@given(**sizes)
def test_predicts_by_its_formula(size, hidden, rows, seed):
    """g(s) = W_D relu(... relu(W_1 s + b_1) ...) + b_D, over any leading dimensions."""
    estimator = fitted(size, hidden, seed)
    state = torch.randn(2, rows, size, dtype=torch.float64)
    value = state
    for i, layer in enumerate(estimator.layers):
        value = value.clamp(min=0) if i else value
        value = torch.einsum("nbs,os->nbo", value, layer.weight) + layer.bias
    assert_close(estimator(state), value)


@given(**sizes)
def test_regression_is_half_the_squared_error_summed_over_s_meaned_over_rows(
    size, hidden, rows, seed
):
    estimator = fitted(size, hidden, seed, scale=0.3, discount=0.7)
    entered, target = torch.randn(2, rows, size, dtype=torch.float64)
    error = estimator.accumulate(entered, target)
    expected = 0.5 * (estimator(entered) - target).pow(2).sum() / rows
    wanted = torch.autograd.grad(expected, list(estimator.parameters()))
    assert error.shape == () and not error.requires_grad
    assert_close(error, expected)
    assert_close(gradients(estimator), list(wanted))
    estimator.accumulate(entered, target)
    assert_close(gradients(estimator), [2 * g for g in wanted])


@given(**sizes)
def test_a_fresh_one_predicts_zero_everywhere(size, hidden, rows, seed):
    torch.manual_seed(seed)
    estimator = SyntheticGradient(size, hidden)
    assert not estimator(1e6 * torch.randn(rows, size)).any()
    assert not estimator.layers[-1].weight.any() and not estimator.layers[-1].bias.any()
    assert all(layer.weight.any() for layer in estimator.layers[:-1])


@given(**sizes)
def test_the_first_fit_moves_it(size, hidden, rows, seed):
    """Zero at the start is not a dead point: the last layer's gradient is there."""
    torch.manual_seed(seed)
    estimator = SyntheticGradient(size, hidden)
    estimator.accumulate(torch.randn(rows, size), torch.ones(rows, size))
    assert estimator.layers[-1].bias.grad.lt(0).all()


def test_accumulate_fits_under_no_grad_and_leaves_its_inputs_alone():
    estimator = fitted(3, (4,), 0)
    entered, target = torch.randn(2, 5, 3, dtype=torch.float64)
    kept = entered.clone(), target.clone()
    with torch.no_grad():
        estimator.accumulate(entered, target)
    assert all(g.any() for g in gradients(estimator))
    assert torch.equal(entered, kept[0]) and torch.equal(target, kept[1])
    assert entered.grad is None and target.grad is None


def test_a_frozen_estimator_is_not_fitted():
    """requires_grad_(False): nothing is accumulated, the error is still told."""
    estimator = fitted(3, (4,), 0).requires_grad_(False)
    entered, target = torch.randn(2, 5, 3, dtype=torch.float64)
    error = estimator.accumulate(entered, target)
    assert_close(error, 0.5 * (estimator(entered) - target).pow(2).sum() / 5)
    assert all(p.grad is None for p in estimator.parameters())


def test_regression_learns_a_linear_map():
    """Gradient descent on accumulate reaches a target that a linear map can say."""
    estimator = SyntheticGradient(3).double()
    torch.manual_seed(1)
    entered, truth = torch.randn(64, 3).double(), torch.randn(3, 3).double()
    optimizer = torch.optim.LBFGS(estimator.parameters(), max_iter=30)

    def closure():
        optimizer.zero_grad()
        return estimator.accumulate(entered, entered @ truth)

    optimizer.step(closure)
    assert_close(estimator.layers[0].weight.T, truth, 1e-4)


@given(**sizes)
def test_zero_gradient_predicts_and_fits_nothing(size, hidden, rows, seed):
    estimator = ZeroGradient()
    torch.manual_seed(seed)
    state = torch.randn(2, rows, size)
    assert not estimator(state).any() and estimator(state).shape == state.shape
    error = estimator.accumulate(*state)
    assert error.shape == () and error == 0
    assert not list(estimator.parameters()) and not estimator.state_dict()
    assert estimator.scale == estimator.discount == 0


def test_weights_are_what_the_operator_takes():
    estimator = SyntheticGradient(4, (5, 6))
    assert [tuple(w.shape) for w in estimator.weights] == [(5, 4), (5,), (6, 5), (6,), (4, 6), (4,)]
    assert all(a is b for a, b in zip(estimator.weights, estimator.parameters()))


def test_saves_copies_and_says_its_knobs():
    estimator = fitted(4, (5,), 0, scale=0.5, discount=0.25)
    other = SyntheticGradient(4, (5,), 0.5, 0.25).double()
    other.load_state_dict(estimator.state_dict())
    state = torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(other(state), estimator(state))
    assert torch.equal(copy.deepcopy(estimator)(state), estimator(state))
    assert "scale=0.5, discount=0.25" in repr(estimator)


def test_forward_and_accumulate_are_what_an_estimator_must_write():
    assert GradientEstimator.__abstractmethods__ == {"forward", "accumulate"}
    assert GradientEstimator.scale == GradientEstimator.discount == 1.0


WEIGHED = {
    "linear": lambda: (SyntheticGradient(3), ()),
    "normalised": lambda: (SyntheticGradient(3, (4,), normalise=True), ()),
    "context": lambda: (SyntheticGradient(3, (4,), context_size=2), (torch.randn(6, 2),)),
    "least squares": lambda: (LeastSquares(3, solve_every=1), ()),
    "bp-lambda": lambda: (BPLambda(3, 2), (torch.randn(2, 2, 3, 3),)),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_rows_that_weigh_nothing_are_as_if_left_out(name):
    """Of 2 chunks of 2 rows, and a last state of which one row ended."""
    found = []
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0]).double()
    for masked in (True, False):
        torch.manual_seed(3)
        estimator, more = WEIGHED[name]()
        estimator.double()
        for parameter in estimator.parameters():
            torch.nn.init.normal_(parameter)
        entered, target = torch.randn(2, 6, 3).double()
        more = [part.double() for part in more]
        if masked:
            error = estimator.accumulate(entered, target, *more, weight=weight)
        else:
            rows = weight > 0
            more = [part[rows] if len(part) == len(rows) else part for part in more]
            error = estimator.accumulate(entered[rows], target[rows], *more)
        left = [part for part in estimator.state_dict().values()]
        if name != "least squares":
            left += gradients(estimator)
        found.append([error, *left])
    assert_close(*found)


def test_where_no_row_counts_nothing_is_learned():
    estimator = fitted(3, (4,), 0, normalise=True)
    before = estimator.mean_square.clone()
    entered, target = torch.randn(2, 6, 3).double()
    error = estimator.accumulate(entered, target, weight=torch.zeros(6).double())
    assert error == 0 and not any(g.any() for g in gradients(estimator))
    assert torch.equal(estimator.mean_square, before)


@pytest.mark.parametrize(("around", "safe"), [
    (lambda one: one, True),
    (lambda one: Control(one, "noise"), True),
    (lambda one: ByPart([ZeroGradient(), one], [2, 3]), True),
    (AutoScale, False),
])  # fmt: skip
def test_what_is_around_an_estimator_is_no_safer_in_a_graph_than_it(around, safe):
    assert around(SyntheticGradient(3)).graph_safe == safe
    assert not around(LeastSquares(3)).graph_safe
