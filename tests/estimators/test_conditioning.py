"""What an estimator is told beside the state: the next step's input or target, or a label."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import make_model, small_stream
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
from dnirnn.config import network
from dnirnn.data import Batch
from dnirnn.tasks import char_lm, copy, digits, repeat_copy
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
        torch.stack([estimator(cut.end[n, b], whole[end, b]) for b in range(problem.batch)])
        for n, end in enumerate(ends)
    ])  # fmt: skip
    boot = estimator.bootstrap(cut)
    kept = cut.synthetic != 0 if estimator.scale else boot != 0
    if problem.final == "no" and problem.reset == "none":
        assert kept.any()
    if estimator.scale:
        assert_close(cut.synthetic[kept], estimator.scale * said[kept])
    if estimator.discount != estimator.scale:
        assert_close(boot[kept], estimator.discount * said[kept])
    result = backward(own_loss(output, case.y), [cut])
    if options.get("normalise"):
        return
    starts = range(0, problem.steps, 1 if options.get("dense") else problem.truncation)
    ended = torch.as_tensor(case.final).expand(problem.batch)
    rows = torch.cat([cut.start.flatten(0, 1), cut.end[-1].detach()[ended]])
    told = torch.cat([whole[[*starts]].flatten(0, 1), whole[-1][ended]])
    target = torch.cat([cut.probe.grad.flatten(0, 1), torch.zeros_like(cut.end[-1][ended])])
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
    assert torch.equal(batch.following.x, following.x)
    _, _, (cut,) = model(batch, model.initial_state(4))
    x = torch.cat([batch.x, following.x])
    said = model.encoder(x)[[0, 3, 6, 7]]
    assert torch.equal(cut.context, said)
    assert_close(cut.synthetic, 0.1 * model.truncated.estimator(cut.end, said[1:]), 1e-6)


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


def told(module, size, **options):
    """(the context of a task's next batch, the batch, what came after it, the encoder)."""
    task = module.build(module.Options(hidden=4, batch=3, estimator="dni", **options))
    assert task.model.truncated.estimator.context_size == size
    batch = task.stream.next(5)
    after = task.stream.next(1)
    return task.model.context(batch, task.model.encoder(batch.x)), batch, after, task.model.encoder


def test_what_copy_tells():
    context, batch, after, _ = told(copy, 4 + 3, bits=3, start_length=4, context=("target", "input"))
    both = batch.then(after)
    # Five steps are the vectors and the delimiter, the sixth says the first vector again.
    assert torch.equal(context, torch.cat([both.x, both.y], -1))
    assert not context[:5, :, 4:].any() and torch.equal(context[5, :, 4:], batch.x[0, :, :3])


def test_what_counts_for_nothing_is_told_as_zeros():
    batch = Batch(torch.zeros(2, 1), torch.ones(2, 1, 3), torch.tensor([[0.0], [1.0]]))
    said = network.tell(batch, torch.zeros(2, 1, 4), lambda y: y, ("target",))
    assert said.tolist() == [[[0, 0, 0]], [[1, 1, 1]]]


def test_what_repeat_copy_tells():
    context, batch, after, _ = told(repeat_copy, 4, bits=3, start_length=3, context=("target",))
    both = batch.then(after)
    assert torch.equal(context, both.y) and torch.equal(context[5, :, :3], both.x[1, :, :3])


def test_what_a_text_tells():
    task = char_lm.build(char_lm.CharLMOptions(hidden=4, embedding=2, batch=3))
    symbols = len(task.config["vocabulary"])
    given = dict(embedding=2, context=("input", "target"))
    context, batch, after, encoder = told(char_lm, 2 + symbols, **given)
    both = batch.then(after)
    assert torch.equal(context[..., :2], encoder(both.x))
    assert torch.equal(context[..., 2:].argmax(-1), both.y)
    assert torch.equal(context[..., 2:].sum(-1), torch.ones(6, 3))


def test_what_digits_tell():
    context, batch, after, _ = told(
        digits, 3 + 5, period=2, windows=2, front=(4,), context=("target",)
    )
    for t, step in enumerate(batch.then(after).y.tolist()):
        for row, counts in enumerate(step):
            odd, threes = context[t, row].split([3, 5])
            for part, count in ((odd, counts[0]), (threes, counts[1])):
                expected = torch.zeros(len(part))
                if count >= 0:
                    expected[count] = 1
                assert torch.equal(part, expected)
    assert context[1, :, :3].any() and not context[0].any() and context[3, :, 3:].any()


def test_a_label_is_told_at_every_step_but_not_after_the_end():
    label, y = torch.rand(2, 3), torch.zeros(4, 2, dtype=torch.long)
    whole = Batch(y, y, None, True, True, label=label)
    model = make_model()
    model.told = partial(network.tell, spell=None, names=("label",))
    for batch, ended in ((whole.piece(0, 2), False), (whole, True)):
        context = model.context(batch, torch.zeros(1))
        expected = label.expand(len(batch.x), 2, 3)
        last = torch.zeros(1, 2, 3) if ended else label[None]
        assert torch.equal(context, torch.cat([expected, last]))


def test_copy_says_what_comes_next():
    stream = CopyStream(CopyOptions(batch=2, bits=3, start_length=3))
    first, second = stream.next(4), stream.next(None)
    assert torch.equal(first.following.x, second.x[:1]) and second.following is None
    part = first.rows(1, 2)
    assert torch.equal(part.following.x, first.following.x[:, 1:2])
    assert first.to(torch.device("cpu")) is first


def test_a_batch_without_following_is_as_before():
    assert Batch(torch.zeros(2, 3), torch.zeros(2, 3)).rows(0, 1).following is None
