"""The auxiliary task: to say at a boundary what the estimator will say at the next one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    Clock,
    Problem,
    any_final,
    any_reset,
    any_t0,
    assert_close,
    gradients,
    own_loss,
    problems,
)

from dnirnn import LSTM, SyntheticGradient, Truncated, backward

CORES = {"lstm": LSTM, "clock": Clock}
few = settings(max_examples=8)


@pytest.fixture(params=CORES)
def build(request):
    def made(input_size, hidden_size, seed):
        torch.manual_seed(seed)
        return CORES[request.param](input_size, hidden_size).double()

    return made


def made(core, auxiliary, **options):
    torch.manual_seed(5)
    estimator = SyntheticGradient(core.state_size, (4,), **options, auxiliary=auxiliary).double()
    for part in (estimator, estimator.ahead) if auxiliary else (estimator,):
        torch.nn.init.normal_(part.layers[-1].weight)
        torch.nn.init.normal_(part.layers[-1].bias)
    return estimator


def update(core, estimator, truncation, case, unit=1.0):
    truncated = Truncated(core, truncation, estimator)
    truncated.zero_grad()
    output, _, (cut,) = truncated(case.x, case.state, case.t0, case.final, case.reset)
    return cut, backward(unit * own_loss(output, case.y), [cut], unit)


@few
@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    options=st.sampled_from(
        [dict(scale=0.7, discount=0.7), dict(scale=0.0, discount=0.5), dict(dense=True),
         dict(trace_decay=0.5), dict(normalise=True)]
    ),
    unit=st.sampled_from([1.0, 0.25]),
)  # fmt: skip
def test_its_loss_is_one_more_loss_of_the_core(build, problem, options, unit):
    """By an attached graph through each chunk; the targets are those without the task."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    plain, estimator = made(core, 0.0, **options), made(core, 0.3, **options)
    plain.load_state_dict(estimator.state_dict(), strict=False)
    if "normalise" in options:
        for each in (plain, estimator, estimator.ahead):
            each.mean_square.copy_(torch.tensor([2.0, 0.5]))
    before, without = update(core, plain, problem.truncation, case, unit)
    expected, fitted = gradients(core), gradients(plain)
    if "normalise" in options:
        plain.mean_square.copy_(torch.tensor([2.0, 0.5]))
    truncated = Truncated(core, problem.truncation, plain)
    _, _, (cut,) = truncated(case.x, case.state, case.t0, case.final, case.reset)
    total, errors = 0.0, []
    for n in range(problem.chunks - 1):
        begin, end = ((n + 1) * problem.truncation, (n + 2) * problem.truncation)
        for b in range(problem.batch):
            if case.reset is not None and case.reset[begin:end, b].any():
                continue
            ends = n + 2 == problem.chunks and torch.as_tensor(case.final).expand(problem.batch)[b]
            if case.reset is not None and end < problem.steps and case.reset[end, b]:
                ends = True
            coming = plain(cut.end[n + 1, b]).detach() * (0.0 if ends else 1.0)
            errors.append(0.5 * (estimator.ahead(cut.end[n, b]) - coming).square().sum())
    if errors:
        total = 0.3 * unit * torch.stack(errors).sum()
        more = torch.autograd.grad(total, list(core.parameters()), materialize_grads=True,
                                   retain_graph=True)
        expected = [a + b for a, b in zip(expected, more)]
    found, result = update(core, estimator, problem.truncation, case, unit)
    assert_close(gradients(core), expected)
    assert_close(found.probe.grad, before.probe.grad)
    assert_close(result["estimator_error"], without["estimator_error"])
    assert_close(gradients(estimator)[: len(fitted)], fitted)
    if errors and "normalise" not in options:
        mean = torch.stack(errors).mean()
        assert_close(result["auxiliary_error"], mean)
        wanted = torch.autograd.grad(mean, list(estimator.ahead.parameters()))
        assert_close(gradients(estimator.ahead), list(wanted))
    if not errors and problem.reset == "none":
        assert problem.chunks == 1 and "auxiliary_error" not in result


def test_a_fresh_one_moves_nothing():
    core, problem = LSTM(2, 3).double(), Problem(6, 2, 2, 2, 3, seed=1)
    case = problem.case(core)
    found = []
    for auxiliary in (0.0, 1.0):
        update(core, SyntheticGradient(6, (4,), auxiliary=auxiliary).double(), 2, case)
        found.append(gradients(core))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_its_parameters_are_the_estimator_s():
    estimator = SyntheticGradient(6, (4,), auxiliary=1.0)
    assert len(list(estimator.parameters())) == 8
    assert [tuple(w.shape) for w in estimator.parts] == [(4, 6), (4,), (6, 4), (6,)]
    assert "auxiliary=1.0" in repr(estimator)
