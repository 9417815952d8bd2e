"""What an estimator is told beside the state: the next step's input, or a label."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import SYMBOLS, make_model, one_thread, small_stream, text  # noqa: F401
from strategies import (
    Clock,
    any_final,
    any_reset,
    any_t0,
    assert_close,
    gradients,
    own_loss,
    problems,
)

from dnirnn import LSTM, SyntheticGradient, Truncated, backward
from dnirnn.data import Batch
from dnirnn.tasks.copy import CopyOptions, CopyStream

few = settings(max_examples=10)


def made(core, size, **options):
    torch.manual_seed(5)
    estimator = SyntheticGradient(core.state_size, (4, 3), context_size=size, **options).double()
    torch.nn.init.normal_(estimator.layers[-1].weight)
    return estimator


@few
@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    options=st.sampled_from(
        [dict(), dict(scale=0.0, discount=0.5), dict(scale=0.5, discount=0.2), dict(dense=True),
         dict(trace_decay=0.5), dict(normalise=True)]
    ),
    label=st.booleans(),
    make=st.sampled_from([LSTM, Clock]),
)  # fmt: skip
def test_each_state_goes_with_its_context(path, problem, options, label, make):
    """In what it says at sent, in what it is fitted on at entered, and at a sequence's end."""
    torch.manual_seed(problem.seed)
    core = make(problem.input_size, problem.hidden_size).double()
    case = problem.case(core)
    shape = (problem.batch, 2) if label else (problem.steps + 1, problem.batch, 2)
    context = torch.randn(shape, dtype=torch.float64)
    whole = context.expand(problem.steps + 1, problem.batch, 2)
    estimator = made(core, 2, **options)
    if options.get("normalise"):
        estimator.mean_square.copy_(torch.tensor([2.0, 0.5]))
    truncated = Truncated(core, problem.truncation, estimator)
    output, _, (cut,) = truncated(
        case.x, case.state, case.t0, case.final, case.reset, context=context
    )
    ends = [min((n + 1) * problem.truncation, problem.steps) for n in range(problem.chunks)]
    said = torch.stack([
        torch.stack([estimator(cut.sent[n, b], whole[end, b]) for b in range(problem.batch)])
        for n, end in enumerate(ends)
    ])  # fmt: skip
    kept = cut.synthetic != 0 if estimator.scale else cut.bootstrap != 0
    if problem.final == "no" and problem.reset == "none":
        assert kept.any()
    if estimator.scale:
        assert_close(cut.synthetic[kept], estimator.scale * said[kept])
    if estimator.discount != estimator.scale:
        assert_close(cut.bootstrap[kept], estimator.discount * said[kept])
    result = backward(own_loss(output, case.y), [cut])
    if options.get("normalise"):
        return
    starts = range(0, problem.steps, 1 if options.get("dense") else problem.truncation)
    ended = torch.as_tensor(case.final).expand(problem.batch)
    rows = torch.cat([cut.entered.flatten(0, 1), cut.sent[-1].detach()[ended]])
    told = torch.cat([whole[[*starts]].flatten(0, 1), whole[-1][ended]])
    target = torch.cat([cut.probe.grad.flatten(0, 1), torch.zeros_like(cut.sent[-1][ended])])
    error = 0.5 * (estimator(rows, told) - target).square().sum(-1).mean()
    assert_close(result["estimator_error"], error)
    expected = torch.autograd.grad(error, list(estimator.parameters()))
    assert_close(gradients(estimator), expected)


def test_no_gradient_reaches_the_context(path):
    core, context = LSTM(2, 3), torch.randn(5, 2, 2, requires_grad=True)
    estimator = SyntheticGradient(6, context_size=2)
    torch.nn.init.normal_(estimator.layers[-1].weight)
    output, _, cuts = Truncated(core, 2, estimator)(
        torch.randn(4, 2, 2), torch.zeros(2, 6), context=context
    )
    backward(output.sum(), cuts)
    assert context.grad is None


@pytest.mark.parametrize("size, context, says", [
    (2, None, r"context must be \[5, 2, 2\] or \[2, 2\] .*got None"),
    (2, torch.zeros(4, 2, 2), r"context must be .*got \(4, 2, 2\)"),
    (2, torch.zeros(2, 3), r"context must be .*got \(2, 3\)"),
    (0, torch.zeros(2, 3), "context is for an estimator that needs one"),
])  # fmt: skip
def test_a_context_that_does_not_fit_is_refused(size, context, says):
    truncated = Truncated(LSTM(2, 3), 2, SyntheticGradient(6, context_size=size))
    with pytest.raises(ValueError, match=says):
        truncated(torch.zeros(4, 2, 2), torch.zeros(2, 6), context=context)


# The next step's input, in a SequenceModel


def conditioned(truncation=3):
    model = make_model(truncation=truncation)
    model.truncated.estimator = made(model.truncated.core, 4).float()
    return model


def test_a_model_tells_the_next_step_s_input():
    model = conditioned()
    stream = small_stream()
    batch, following = stream.next(7), stream.next(1)
    assert torch.equal(batch.following, following.x[0])
    _, _, (cut,) = model(batch, model.initial_state(4))
    x = torch.cat([batch.x, following.x])
    said = model.encoder(x)[[0, 3, 6, 7]]
    assert torch.equal(cut.context, said)
    assert_close(cut.synthetic, 0.1 * model.truncated.estimator(cut.sent, said[1:]), 1e-6)


def test_at_a_sequence_s_end_there_is_no_next_input():
    model, stream = conditioned(), small_stream()
    final = False
    while not final:
        batch = stream.next(6)
        _, _, (cut,) = model(batch, model.initial_state(4))
        final = batch.final
    assert batch.following is None and not cut.context[-1].any() and not cut.synthetic[-1].any()
    with pytest.raises(ValueError, match="following"):
        model(batch._replace(final=False), model.initial_state(4))


def test_copy_says_what_comes_next():
    stream = CopyStream(CopyOptions(batch=2, bits=3, start_length=3))
    first, second = stream.next(4), stream.next(None)
    assert torch.equal(first.following, second.x[0]) and second.following is None
    part = first.rows(1, 2)
    assert torch.equal(part.following, first.following[1:2])
    assert first.to(torch.device("cpu")) is first


def test_a_batch_without_following_is_as_before():
    assert Batch(torch.zeros(2, 3), torch.zeros(2, 3)).rows(0, 1).following is None
