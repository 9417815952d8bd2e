"""TrueGradient: an oracle that is told by looking ahead; full backpropagation through time."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from small_runs import make_model, text
from strategies import (
    Counter,
    any_reset,
    any_t0,
    assert_close,
    full_bptt,
    gradients,
    own_loss,
    problems,
)

from dnirnn import LSTM, SyntheticGradient, TrueGradient, Truncated, ZeroGradient, backward
from dnirnn.data import Batch
from dnirnn.true_gradient import true_gradients


def call(core, estimator, truncation, case):
    """(the loss of one call, its interfaces)."""
    truncated = Truncated(core, truncation, estimator)
    output, _, interfaces = truncated(case.x, case.state, case.t0, case.final, case.reset)
    return own_loss(output, case.y), interfaces


def discounted(core, case, start, begin, truncation, lookahead, discount):
    """d/ds of the losses of the next chunks, discounted by the chunk: a loop over core.step."""
    state = start.detach().requires_grad_()
    carried, loss = state, 0.0
    end = min(begin + lookahead * truncation, len(case.x))
    t = torch.as_tensor(case.t0).expand(len(state))
    for i in range(end):
        if case.reset is not None:
            t = torch.where(case.reset[i], 0, t)
        if i >= begin:
            if case.reset is not None:
                zero = torch.zeros_like(carried)
                carried = torch.where(case.reset[i, :, None], zero, carried)
            output, carried = core.step(case.x[i], carried, t)
            loss = loss + discount ** ((i - begin) // truncation) * own_loss(output, case.y[i])
        t = t + 1
    return torch.autograd.grad(loss, state, materialize_grads=True)[0]


@given(
    problem=problems(t0=any_t0, reset=any_reset),
    lookahead=st.integers(1, 4) | st.none(),
    discount=st.sampled_from([0.0, 0.5, 1.0]),
    estimator=st.sampled_from(["oracle", "dni"]),
    unit=st.sampled_from([1.0, 0.25]),
)
def test_they_are_the_gradients_of_the_coming_loss(
    build, problem, lookahead, discount, estimator, unit
):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    carries = TrueGradient() if estimator == "oracle" else SyntheticGradient(core.state_size)
    loss, (cut,) = call(core, carries.double(), problem.truncation, case)
    found = true_gradients(unit * loss, cut, lookahead, discount, unit)
    for n in range(problem.chunks):
        expected = discounted(
            core,
            case,
            cut.start[n],
            n * problem.truncation,
            problem.truncation,
            lookahead or problem.chunks,
            discount,
        )
        assert_close(found[n], expected)
    assert all(parameter.grad is None for parameter in core.parameters())
    assert cut.probe.grad is None


@given(problem=problems(t0=any_t0, final=("yes",), reset=any_reset))
def test_with_the_end_in_sight_the_update_is_full_backpropagation(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    expected, at_state = full_bptt(core, case)
    oracle = TrueGradient()
    told = oracle.look(lambda: call(core, oracle, problem.truncation, case))
    cuts = [*range(0, problem.steps, problem.truncation)]
    assert_close(told, at_state[cuts])
    loss, interfaces = call(core, oracle, problem.truncation, case)
    backward(loss, interfaces)
    assert_close(gradients(core), expected)
    assert_close(interfaces[0].probe.grad, told)


@given(problem=problems(t0=any_t0), where=st.floats(0, 1))
def test_window_by_window_too(build, problem, where):
    """Each call looks to the end of the sequence, and updates on its own steps alone."""
    assume(problem.chunks > 1)
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    expected, _ = full_bptt(core, case)
    split = problem.truncation * (1 + int(where * (problem.chunks - 2)))
    oracle, state, t0 = TrueGradient(), case.state, case.t0
    for begin, end in ((0, split), (split, problem.steps)):
        from_here = case._replace(x=case.x[begin:], y=case.y[begin:], state=state, t0=t0)
        window = from_here._replace(x=case.x[begin:end], y=case.y[begin:end])
        oracle.look(lambda: call(core, oracle, problem.truncation, from_here))
        loss, interfaces = call(core, oracle, problem.truncation, window)
        backward(loss, interfaces)
        state, t0 = interfaces[0].end[-1].detach(), t0 + end - begin
    # A layer norm of one unit divides by the root of its epsilon alone: it magnifies rounding.
    assert_close(gradients(core), expected, 1e-9)


def test_of_a_sequence_model():
    """Told by looking ahead, a model with an encoder and a readout learns as uncut."""
    symbols = text(45)
    batch = Batch(symbols[:-1].view(4, 11).T, symbols[1:].view(4, 11).T, final=True)
    found = []
    for truncation, estimator in ((11, ZeroGradient()), (3, TrueGradient())):
        model = make_model("none").double()
        model.truncated = Truncated(model.truncated.core, truncation, estimator)

        def run(model=model):
            nats, _, interfaces = model(batch, model.initial_state(4))
            return nats.sum() / 44, interfaces

        if truncation == 3:
            estimator.look(run, 1 / 44)
        backward(*run(), 1 / 44)
        found.append(gradients(model))
    assert_close(*found)


def test_a_lookahead_counts_chunks():
    """A Counter's state is in every later output once: W chunks of 2 steps give 2 W."""
    core = Counter()
    output, _, (cut,) = Truncated(core, 2, TrueGradient())(torch.zeros(7, 1, 1), torch.zeros(1, 1))
    loss = output.sum()
    assert true_gradients(loss, cut, 1).flatten().tolist() == [2, 2, 2, 1]
    assert true_gradients(loss, cut, 2).flatten().tolist() == [4, 4, 3, 1]
    assert true_gradients(loss, cut, 9).flatten().tolist() == [7, 5, 3, 1]
    assert true_gradients(loss, cut, 3, 0.5).flatten().tolist() == [3.5, 3.25, 2.5, 1]


def test_what_does_not_fit_is_refused():
    core = LSTM(2, 3)
    x, state = torch.randn(6, 2, 2), core.initial_state(2)
    output, _, (cut,) = Truncated(core, 2, ZeroGradient())(x, state)
    with pytest.raises(ValueError, match="interface must have one probe a chunk"):
        true_gradients(output.sum(), cut)
    oracle = TrueGradient()
    truncated = Truncated(core, 2, oracle)
    output, _, (cut,) = truncated(x, state)
    for options, says in (
        (dict(lookahead=0), "lookahead must be an int of at least 1"),
        (dict(discount=-1.0), "discount must be finite"),
    ):
        with pytest.raises(ValueError, match=says):
            true_gradients(output.sum(), cut, **options)
    oracle.look(lambda: (output.sum(), [cut]))
    assert oracle(cut.end).shape == cut.end.shape
    with pytest.raises(ValueError, match="looked at"):
        truncated(torch.randn(8, 2, 2), state)
