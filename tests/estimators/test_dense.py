"""Dense targets: the estimator is fitted at every state of a chunk; and targets of unit size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    Clock,
    any_final,
    any_reset,
    any_t0,
    assert_close,
    full_bptt,
    gradients,
    own_loss,
    problems,
    seeds,
)

from dnirnn import LSTM, FromTorch, SyntheticGradient, Truncated, backward

CORES = {
    "lstm": LSTM,
    "lstm-2": lambda i, h: LSTM(i, h, 2),
    "from-gru": lambda i, h: FromTorch(torch.nn.GRU(i, h)),
    "clock": Clock,
}
few = settings(max_examples=6)


@pytest.fixture(params=CORES)
def build(request):
    def made(input_size, hidden_size, seed):
        torch.manual_seed(seed)
        return CORES[request.param](input_size, hidden_size).double()

    return made


def made(core, **options):
    """An estimator whose layers are all random, the last one too."""
    torch.manual_seed(5)
    estimator = SyntheticGradient(core.state_size, (4,), **options).double()
    torch.nn.init.normal_(estimator.layers[-1].weight)
    return estimator


def update(core, estimator, truncation, case, unit=1.0):
    truncated = Truncated(core, truncation, estimator)
    truncated.zero_grad()
    output, state, (cut,) = truncated(case.x, case.state, case.t0, case.final, case.reset)
    result = backward(unit * own_loss(output, case.y), [cut], unit)
    return output, state, cut, result


def by_hand(core, estimator, truncation, case):
    """The states that the steps start from, and their targets: a loop over core.step."""
    steps, batch = case.x.shape[:2]
    state, t = case.state, torch.as_tensor(case.t0).expand(batch)
    states, targets = [], []
    for begin in range(0, steps, truncation):
        state, loss, end = state.detach().requires_grad_(), 0.0, min(begin + truncation, steps)
        starts = []
        for i in range(begin, end):
            state = state.clone() if starts else state
            starts.append(state)
            if case.reset is not None:
                state = torch.where(case.reset[i, :, None], torch.zeros_like(state), state)
                t = torch.where(case.reset[i], 0, t)
            output, state = core.step(case.x[i], state, t)
            loss, t = loss + own_loss(output, case.y[i]), t + 1
        ends = torch.as_tensor(case.final).expand(batch) if end == steps else torch.zeros(batch) > 0
        if end < steps and case.reset is not None:
            ends = case.reset[end]
        said = torch.where(ends[:, None], 0, estimator(state.detach())).detach()
        wanted = [torch.ones_like(loss), estimator.discount * said]
        targets += torch.autograd.grad([loss, state], starts, wanted, materialize_grads=True)
        states += [start.detach() for start in starts]
    return torch.stack(states), torch.stack(targets)


@few
@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    knobs=st.sampled_from([(0.7, 0.7), (0.2, 0.9)]),
    unit=st.sampled_from([1.0, 0.25]),
)
def test_every_state_has_its_target(build, path, problem, knobs, unit):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    estimator = made(core, scale=knobs[0], discount=knobs[1], dense=True)
    states, targets = by_hand(core, estimator, problem.truncation, case)
    _, _, cut, result = update(core, estimator, problem.truncation, case, unit)
    assert_close(cut.start, states)
    assert_close(cut.probe.grad / unit, targets)
    ended = torch.as_tensor(case.final).expand(problem.batch)
    rows = torch.cat([states.flatten(0, 1), cut.end[-1].detach()[ended]])
    wanted = torch.cat([targets.flatten(0, 1), torch.zeros_like(cut.end[-1][ended])])
    error = 0.5 * (estimator(rows) - wanted).square().sum(-1).mean()
    assert_close(result["estimator_error"], error)
    expected = torch.autograd.grad(error, list(estimator.parameters()))
    assert_close(gradients(estimator), list(expected))


@few
@given(problem=problems(t0=any_t0, final=any_final, reset=any_reset))
def test_the_core_learns_the_same(build, path, problem):
    """Dense or not, what is injected, what comes out and the chunks' own targets are equal."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    output, state, cut, _ = update(core, made(core), problem.truncation, case)
    expected = gradients(core)
    dense = update(core, made(core, dense=True), problem.truncation, case)
    assert_close([dense[0], dense[1]], [output, state])
    assert_close(gradients(core), expected)
    assert_close(dense[2].end, cut.end)
    assert_close(dense[2].synthetic, cut.synthetic)
    assert_close(dense[2].probe.grad[:: problem.truncation], cut.probe.grad)
    assert_close(dense[2].start[:: problem.truncation], cut.start)


@few
@given(problem=problems(t0=any_t0, final=("yes",)))
def test_in_one_chunk_they_are_the_true_gradients(build, path, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    _, at_state = full_bptt(core, case)
    _, _, cut, _ = update(core, made(core, dense=True), problem.steps, case)
    assert_close(cut.probe.grad, at_state[:-1])


def test_bfloat16_and_float32_states(path):
    core = LSTM(3, 4)
    estimator = SyntheticGradient(8, dense=True)
    with torch.autocast("cpu", torch.bfloat16):
        output, _, (cut,) = Truncated(core, 2, estimator)(torch.randn(5, 2, 3), torch.randn(2, 8))
    backward(output.float().sum(), [cut])
    assert cut.start.dtype == cut.probe.grad.dtype == torch.float32
    assert cut.start.shape == cut.probe.grad.shape == (5, 2, 8)


def test_a_trace_decay_beside_it_is_refused():
    with pytest.raises(ValueError, match="dense targets have no trace_decay; got 0.5"):
        SyntheticGradient(3, dense=True, trace_decay=0.5)


# Targets in units of their running RMS


@given(seed=seeds, rows=st.integers(1, 5), hidden=st.sampled_from([(), (4,)]))
def test_normalised_it_is_fitted_in_units_of_the_running_rms(seed, rows, hidden):
    torch.manual_seed(seed)
    estimator = SyntheticGradient(3, hidden, normalise=True).double()
    torch.nn.init.normal_(estimator.layers[-1].weight)
    mlp = SyntheticGradient(3, hidden).double()
    mlp.load_state_dict(estimator.state_dict(), strict=False)
    total = weight = 0.0
    for fit in range(3):
        entered, target = torch.randn(2, rows, 3, dtype=torch.float64) * 10.0 ** (fit - 2)
        total = 0.99 * total + 0.01 * target.square().mean()
        weight = 0.99 * weight + 0.01
        unit = (total / weight).sqrt()
        estimator.zero_grad(), mlp.zero_grad()
        error = estimator.accumulate(entered, target)
        assert_close(mlp.accumulate(entered, target / unit) * unit**2, error, floor=0.0)
        assert_close(gradients(estimator), gradients(mlp))
        assert_close(estimator(entered), unit * mlp(entered))


@given(seed=seeds, power=st.integers(-12, 12))
def test_normalised_the_size_of_the_targets_changes_no_gradient(seed, power):
    """A power of two, so that equality is exact; and the prediction scales with them."""
    found = []
    for size in (1.0, 2.0**power):
        torch.manual_seed(seed)
        estimator = SyntheticGradient(3, (4,), normalise=True).double()
        torch.nn.init.normal_(estimator.layers[-1].weight)
        entered, target = torch.randn(2, 6, 3, dtype=torch.float64)
        estimator.accumulate(entered, size * target)
        found.append((gradients(estimator), estimator(entered).detach() / size))
    assert_close(found[0][0], found[1][0])
    assert_close(found[0][1], found[1][1])


def test_normalised_a_fresh_one_says_zero_and_targets_of_zero_do_no_harm():
    estimator = SyntheticGradient(3, normalise=True)
    torch.nn.init.normal_(estimator.layers[-1].weight)
    entered = torch.randn(4, 3)
    assert not estimator(entered).any()
    error = estimator.accumulate(entered, torch.zeros(4, 3))
    assert error == 0 and all(g.isfinite().all() for g in gradients(estimator))
    assert not estimator(entered).any()


def test_normalised_in_an_update(path):
    """What is injected is what it predicts; its unit is in the state_dict."""
    core = LSTM(2, 3).double()
    estimator = made(core, normalise=True)
    estimator.mean_square.copy_(torch.tensor([0.5, 0.125]))
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    _, _, (cut,) = Truncated(core, 2, estimator)(x, torch.zeros(2, 6, dtype=torch.float64))
    assert_close(cut.synthetic, 0.1 * estimator(cut.end))
    assert cut.synthetic.any() and estimator.unit == 2
    other = made(core, normalise=True)
    other.load_state_dict(estimator.state_dict())
    assert_close(other(cut.end), estimator(cut.end))
