"""LeastSquares: what it solves, that old targets fade, and that nothing but the rows counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds
from torch.nn import functional as F

from dnirnn import LSTM, LeastSquares, SyntheticGradient, Truncated, ZeroGradient, backward

problems = dict(
    size=st.integers(1, 5),
    context=st.integers(0, 3),
    rows=st.integers(1, 6),
    fits=st.integers(1, 7),
    every=st.integers(1, 3),
    forgetting=st.sampled_from((0.0, 0.5, 0.97)),
    seed=seeds,
)


def drawn(size, context, rows, fits, seed):
    """The rows of some fits: states, targets, and contexts as accumulate takes them."""
    torch.manual_seed(seed)
    states, targets = torch.randn(2, fits, rows, size, dtype=torch.float64)
    told = torch.randn(fits, rows, context, dtype=torch.float64)
    return states, targets, [[part] if context else [] for part in told]


@given(**problems)
def test_solves_the_ridge_regression_of_all_rows_the_old_ones_fading(
    size, context, rows, fits, every, forgetting, seed
):
    """Against one least squares problem over all rows, with the ridge as rows of its own."""
    states, targets, told = drawn(size, context, rows, fits, seed)
    options = dict(forgetting=forgetting, ridge=0.1, solve_every=every, context_size=context)
    estimator = LeastSquares(size, **options).double()
    for state, target, beside in zip(states, targets, told):
        estimator.accumulate(state, target, *beside)

    last = fits - fits % every
    units = [
        torch.cat([state, *beside, torch.ones(rows, 1, dtype=torch.float64)], 1)
        for state, beside in zip(states, told)
    ]
    shares = [(1 - forgetting) * forgetting ** (last - 1 - i) / rows for i in range(last)]
    width = size + context + 1
    if not last:
        expected = torch.zeros(width, size, dtype=torch.float64)
    else:
        squares = sum(w * (u * u).sum() for w, u in zip(shares, units)) / width
        left = [w**0.5 * u for w, u in zip(shares, units)]
        left.append((0.1 * squares) ** 0.5 * torch.eye(width, dtype=torch.float64))
        right = [w**0.5 * target for w, target in zip(shares, targets)]
        right.append(torch.zeros(width, size, dtype=torch.float64))
        expected = torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution
    assert_close(estimator.weight, expected[:-1].T)
    assert_close(estimator.bias, expected[-1])
    assert_close(
        estimator(states[0], *told[0]), F.linear(units[0], expected.T.contiguous())
    )


@given(size=st.integers(1, 5), seed=seeds)
def test_finds_a_linear_map_that_is_there(size, seed):
    states, _, _ = drawn(size, 0, 4 * size + 8, 1, seed)
    weight, bias = torch.randn(size, size, dtype=torch.float64), torch.randn(size).double()
    estimator = LeastSquares(size, ridge=1e-13, solve_every=1).double()
    first = estimator.accumulate(states[0], F.linear(states[0], weight, bias))
    second = estimator.accumulate(states[0], F.linear(states[0], weight, bias))
    assert_close(estimator.weight, weight, 1e-7)
    assert_close(estimator.bias, bias, 1e-7)
    assert_close(first, 0.5 * F.linear(states[0], weight, bias).square().sum(1).mean())
    assert float(second) < 1e-12 * float(first)


@given(size=st.integers(1, 5), rows=st.integers(1, 5), copies=st.integers(1, 3), seed=seeds)
def test_copies_of_the_rows_change_nothing(size, rows, copies, seed):
    states, targets, _ = drawn(size, 0, rows, 3, seed)
    one, many = (LeastSquares(size, solve_every=1).double() for _ in range(2))
    for state, target in zip(states, targets):
        error = one.accumulate(state, target)
        assert_close(many.accumulate(state.repeat(copies, 1), target.repeat(copies, 1)), error)
    assert_close(many.weight, one.weight, 1e-7)


def update(estimator, seed=0):
    torch.manual_seed(seed)
    core = LSTM(3, 4)
    output, state, cuts = Truncated(core, 2, estimator)(torch.randn(6, 5, 3), torch.randn(5, 8))
    backward(output.square().sum(), cuts, 1 / 5)
    return [output, state, *(parameter.grad for parameter in core.parameters())]


def test_a_fresh_one_says_nothing_and_no_gradient_reaches_it():
    estimator = LeastSquares(8)
    for found, expected in zip(update(estimator), update(ZeroGradient())):
        assert torch.equal(found, expected)
    assert [parameter.grad for parameter in estimator.parameters()] == [None, None]
    assert estimator.fits == 1


def test_the_operator_emits_what_it_says():
    """The fused path takes its weights; the chunks' synthetic gradients are its own."""
    torch.manual_seed(0)
    core, estimator = LSTM(3, 4), LeastSquares(8, scale=0.7, discount=0.7)
    torch.nn.init.normal_(estimator.weight)
    torch.nn.init.normal_(estimator.bias)
    _, _, (cut,) = Truncated(core, 2, estimator)(torch.randn(6, 5, 3), torch.randn(5, 8))
    assert_close(cut.synthetic, 0.7 * estimator(cut.end.detach()), 1e-6)


def test_targets_that_are_not_finite_leave_the_solution_as_it_was():
    estimator = LeastSquares(2, solve_every=1)
    estimator.accumulate(torch.randn(4, 2), torch.randn(4, 2))
    before = estimator.weight.clone()
    estimator.accumulate(torch.randn(4, 2), torch.full((4, 2), float("inf")))
    assert torch.equal(estimator.weight, before) and before.any()


def test_learns_from_correlated_units_what_descent_does_not():
    """A linear map of units that nearly say the same, as a recurrent state's do, with noise."""

    def left_after_fits(estimator):
        torch.manual_seed(0)
        mix = torch.ones(8, 8).double() + 0.1 * torch.randn(8, 8).double()
        weight = torch.randn(8, 8).double() @ torch.linalg.inv(mix)
        optimizer = torch.optim.Adam(estimator.parameters(), 1e-2)
        for _ in range(30):
            state = torch.randn(32, 8).double() @ mix.T
            noise = 0.1 * torch.randn(32, 8).double()
            estimator.accumulate(state, F.linear(state, weight) + noise)
            optimizer.step()
            optimizer.zero_grad()
        state = torch.randn(1000, 8).double() @ mix.T
        true = F.linear(state, weight)
        return float((estimator(state).detach() - true).norm() / true.norm())

    solved = left_after_fits(LeastSquares(8, ridge=1e-6).double())
    descended = left_after_fits(SyntheticGradient(8, normalise=True).double())
    assert solved < 0.1 and descended > 0.5


@pytest.mark.parametrize(
    "options, said",
    [
        ({"forgetting": 1.0}, "forgetting must be below 1; got 1.0"),
        ({"forgetting": -0.1}, "forgetting must be finite and not negative; got -0.1"),
        ({"ridge": 0}, "ridge must be above 0; got 0"),
        ({"solve_every": 0}, "solve_every must be an int of at least 1; got 0"),
        ({"state_size": 0}, "state_size must be an int of at least 1; got 0"),
        ({"dense": True, "trace_decay": 0.5}, "dense targets have no trace_decay; got 0.5"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        LeastSquares(**{"state_size": 4, **options})
