"""Lambda targets, in the forward view over the chunks of a call, and online by BP(lambda)."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import (
    Clock,
    Counter,
    Fitting,
    any_final,
    any_reset,
    any_t0,
    assert_close,
    full_bptt,
    gradients,
    own_loss,
    problems,
)

from dnirnn import LSTM, BPLambda, SyntheticGradient, Truncated, backward

CORES = {"lstm": LSTM, "clock": Clock}
decays = st.sampled_from([0.0, 0.3, 1.0])
few = settings(max_examples=8)


@pytest.fixture(params=CORES)
def build(request):
    def made(input_size, hidden_size, seed):
        torch.manual_seed(seed)
        return CORES[request.param](input_size, hidden_size).double()

    return made


def linear(core, scale, discount, decay, seed=0):
    """A linear SyntheticGradient with lambda targets, its weights random."""
    made = SyntheticGradient(core.state_size, (), scale, discount, trace_decay=decay)
    other = Fitting((), scale, discount, seed).estimator(core)
    made.load_state_dict(other.state_dict())
    return made.double()


def online(core, batch, like):
    """A BPLambda with the weights, and lambda, of a linear SyntheticGradient."""
    made = BPLambda(
        core.state_size, batch, like.trace_decay, like.scale, like.discount, dtype=torch.float64
    )
    torch.nn.init.zeros_(made.trace)
    with torch.no_grad():
        made.weight.copy_(like.layers[0].weight)
        made.bias.copy_(like.layers[0].bias)
    return made


def update(core, estimator, truncation, case, unit=1.0):
    truncated = Truncated(core, truncation, estimator)
    truncated.zero_grad()
    output, state, (cut,) = truncated(case.x, case.state, case.t0, case.final, case.reset)
    result = backward(unit * own_loss(output, case.y), [cut], unit)
    return cut, state, result


def by_hand(core, estimator, truncation, case, decay):
    """G_n backwards from the end, a chunk at a time on core.step: the targets [N, B, S]."""
    steps, batch = case.x.shape[:2]
    chunks, state = [], case.state
    t = torch.as_tensor(case.t0).expand(batch)
    for begin in range(0, steps, truncation):
        start = state.detach().requires_grad_()
        state, loss, end = start, 0.0, min(begin + truncation, steps)
        for i in range(begin, end):
            if case.reset is not None:
                state = torch.where(case.reset[i, :, None], torch.zeros_like(state), state)
                t = torch.where(case.reset[i], 0, t)
            output, state = core.step(case.x[i], state, t)
            loss, t = loss + own_loss(output, case.y[i]), t + 1
        ends = torch.as_tensor(case.final).expand(batch) if end == steps else torch.zeros(batch) > 0
        if end < steps and case.reset is not None:
            ends = case.reset[end]
        chunks.append((start, loss, state, ends))
    targets = []
    for start, loss, state, ends in reversed(chunks):
        said = torch.where(ends[:, None], 0, estimator(state.detach())).detach()
        coming = (1 - decay) * said + decay * targets[-1] if targets else said
        coming = torch.where(ends[:, None], 0, coming)
        seeds = [torch.ones_like(loss), estimator.discount * coming]
        targets += torch.autograd.grad([loss, state], start, seeds, materialize_grads=True)
    return torch.stack(targets[::-1])


@few
@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    knobs=st.sampled_from([(0.7, 0.7), (0.1, 0.9), (0.0, 0.5)]),
    decay=decays,
    unit=st.sampled_from([1.0, 0.25]),
)
def test_targets_are_the_mixture_of_the_returns(build, problem, knobs, decay, unit):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), None
    estimator = linear(core, *knobs, decay)
    expected = by_hand(core, estimator, problem.truncation, case, decay)
    cut, _, _ = update(core, estimator, problem.truncation, case, unit)
    assert_close(cut.probe.grad / unit, expected)
    plain = linear(core, *knobs, 0.0)
    injected = gradients(core)
    other, _, _ = update(core, plain, problem.truncation, case, unit)
    assert_close(injected, gradients(core))
    if decay == 0:
        assert_close(cut.probe.grad, other.probe.grad)
        assert_close(gradients(estimator), gradients(plain))


@few
@given(problem=problems(t0=any_t0, final=("yes",), reset=any_reset))
def test_lambda_1_with_the_end_in_sight_is_the_whole_future(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    _, at_state = full_bptt(core, case)
    cut, _, _ = update(core, linear(core, 0.1, 1.0, 1.0), problem.truncation, case)
    assert_close(cut.probe.grad, at_state[[*range(0, problem.steps, problem.truncation)]])


def test_lambda_targets_in_closed_form():
    """A Counter in chunks of 2, whose estimator says 10: own 2, then half of the mixture."""
    core = Counter()
    estimator = SyntheticGradient(1, (), 0.0, 0.5, trace_decay=0.5)
    torch.nn.init.constant_(estimator.layers[0].bias, 10.0)
    output, _, (cut,) = Truncated(core, 2, estimator)(torch.zeros(6, 1, 1), torch.zeros(1, 1))
    backward(output.sum(), [cut])
    last = 2 + 0.5 * 10
    middle = 2 + 0.5 * (5 + 0.5 * last)
    first = 2 + 0.5 * (5 + 0.5 * middle)
    assert cut.probe.grad.flatten().tolist() == [first, middle, last]


# BP(lambda)


@few
@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset, max_steps=6),
    decay=decays,
    discount=st.sampled_from([0.5, 1.0]),
    unit=st.sampled_from([1.0, 0.25]),
)
def test_one_call_is_the_forward_view(build, problem, decay, discount, unit):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, forward = problem.case(core), linear(core, 0.5, discount, decay)
    bp_lambda = online(core, problem.batch, forward)
    cut, _, _ = update(core, forward, problem.truncation, case, unit)
    learned, expected = gradients(core), gradients(forward)
    other, _, _ = update(core, bp_lambda, problem.truncation, case, unit)
    assert_close(gradients(core), learned)
    assert_close(gradients(bp_lambda), expected)


@few
@given(problem=problems(t0=("int",), final=("no", "yes"), max_steps=6), decay=decays)
def test_online_updates_sum_up_to_the_forward_view(build, problem, decay):
    """A call for each chunk, and the trace between them: summed, the regression in one call."""
    assume(problem.chunks > 1)
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, forward = problem.case(core), linear(core, 0.5, 0.9, decay)
    bp_lambda = online(core, problem.batch, forward)
    update(core, forward, problem.truncation, case)
    rows = (problem.chunks + (case.final is True)) * problem.batch
    found, state, t0 = [torch.zeros_like(g) for g in gradients(bp_lambda)], case.state, case.t0
    for begin in range(0, problem.steps, problem.truncation):
        part = slice(begin, begin + problem.truncation)
        last = begin + problem.truncation >= problem.steps
        window = case._replace(
            x=case.x[part], y=case.y[part], state=state, t0=t0, final=case.final and last
        )
        _, state, _ = update(core, bp_lambda, problem.truncation, window)
        rows_here = problem.batch * (1 + window.final)
        found = [a + rows_here * b for a, b in zip(found, gradients(bp_lambda))]
        t0 += len(window.x)
    assert_close([f / rows for f in found], gradients(forward))
    assert bp_lambda.trace.any() == (decay > 0 and case.final is False)


def test_a_trace_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match=r"takes 17.21 GB \(32 x 512 x 512 x 513 numbers\)"):
        BPLambda(512, 32)
    with pytest.raises(ValueError, match="memory_limit is 0.00 GB"):
        BPLambda(4, 2, memory_limit=600)
    assert BPLambda(4, 2, memory_limit=2 * 4 * 4 * 5 * 4).trace.shape == (2, 4, 20)


@pytest.mark.parametrize("options, says", [
    (dict(trace_decay=1.5), "trace_decay must be at most 1; got 1.5"),
    (dict(trace_decay=-0.5), "trace_decay must be finite and not negative"),
    (dict(state_size=0), "state_size must be an int of at least 1"),
    (dict(batch_size=0), "batch_size must be an int of at least 1"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        BPLambda(**{"state_size": 2, "batch_size": 2, **options})


def test_another_batch_than_the_trace_s_is_refused():
    core = LSTM(2, 1)
    output, _, cuts = Truncated(core, 2, BPLambda(2, 3))(torch.zeros(2, 2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="batch_size is 3; got a batch of 2"):
        backward(output.sum(), cuts)
