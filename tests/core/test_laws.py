"""The laws that hold for every core: what a cut sends, what it is taught, where a sequence ends."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    Counter,
    Fitting,
    Leaky,
    Oracle,
    Problem,
    any_final,
    any_reset,
    any_t0,
    assert_close,
    by_hand,
    fittings,
    full_bptt,
    gradients,
    own_loss,
    problems,
)

from dnirnn import GradientEstimator, SyntheticGradient, Truncated, ZeroGradient, backward

pytestmark = pytest.mark.usefixtures("device")


class Constant(GradientEstimator):
    """Predicts one number everywhere; its scale and discount are 1."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, state):
        return torch.full_like(state, self.value)

    def accumulate(self, entered, target):
        self.entered, self.target = entered, target
        return target.new_zeros(())


def update(core, estimator, truncation, case, unit=1.0):
    """One call and one backward: (output, state, the cut, what backward returned)."""
    truncated = Truncated(core, truncation, estimator)
    truncated.zero_grad()
    output, state, interfaces = truncated(case.x, case.state, case.t0, case.final, case.reset)
    result = backward(unit * own_loss(output, case.y), interfaces, unit)
    (cut,) = interfaces
    return output.detach(), state, cut, result


def slice_case(case, begin, end, state, last):
    """Steps begin to end of a case, as a call of its own that starts from ``state``."""
    t0 = case.t0
    for i in range(begin):
        reset = torch.zeros(len(state), dtype=torch.bool) if case.reset is None else case.reset[i]
        t0 = torch.where(reset, 0, torch.as_tensor(t0).expand(len(state))) + 1
    reset = None if case.reset is None else case.reset[begin:end]
    final = case.final if last else False
    if not last and case.reset is not None:
        final = case.reset[end]  # a reset at the next call's step 0 is that call's, told by `final`
    return case._replace(
        x=case.x[begin:end], y=case.y[begin:end], state=state, t0=t0, final=final, reset=reset
    )


# The whole update, against the paper's equations written out chunk by chunk (laws 1 and 10).


@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    fitting=fittings,
    unit=st.sampled_from([1.0, 0.25, 128.0]),
)
def test_update_is_the_one_written_by_hand(build, problem, fitting, unit):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    expected = by_hand(core, estimator, problem.truncation, case, unit)
    output, state, cut, result = update(core, estimator, problem.truncation, case, unit)
    assert_close(output, expected.output)
    assert_close(state, expected.sent[-1])
    assert_close(cut.end, expected.sent)
    assert_close(cut.synthetic, expected.synthetic)
    assert_close(cut.start, torch.cat([case.state[None], expected.sent[:-1]]))
    assert_close(cut.probe.grad / unit, expected.targets)
    assert_close(gradients(core), expected.core)
    assert_close(gradients(estimator), expected.estimator)
    assert_close(result["estimator_error"], expected.error)


# Law 3. Oracle.


@given(problem=problems(t0=any_t0, final=("yes",), reset=any_reset))
def test_oracle_gives_full_backpropagation(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    expected, at_state = full_bptt(core, case)
    cuts = [*range(0, problem.steps, problem.truncation), problem.steps]
    oracle = Oracle(at_state[cuts])
    _, _, _, result = update(core, oracle, problem.truncation, case)
    assert_close(gradients(core), expected)
    assert result["estimator_error"] < 1e-20 * max(1, oracle.true.square().sum())
    assert len(oracle.target) == (problem.chunks + 1) * problem.batch, "the final state is taught"


@given(problem=problems(t0=any_t0, final=("yes",)), where=st.floats(0, 1))
def test_oracle_gives_full_backpropagation_over_two_calls(build, problem, where):
    assume(problem.steps > 1)
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    expected, at_state = full_bptt(core, case)
    split = 1 + int(where * (problem.steps - 2))
    found, state = None, case.state
    for begin, end in ((0, split), (split, problem.steps)):
        part = slice_case(case, begin, end, state, last=end == problem.steps)
        cuts = [*range(begin, end, problem.truncation), end]
        oracle = Oracle(at_state[cuts])
        _, state, _, result = update(core, oracle, problem.truncation, part)
        assert result["estimator_error"] < 1e-20 * max(1, oracle.true.square().sum())
        here = gradients(core)
        found = here if found is None else [a + b for a, b in zip(found, here)]
    assert_close(found, expected)


# Law 4. Alignment.


@given(problem=problems(t0=any_t0, final=("yes",), reset=any_reset))
def test_target_is_the_true_gradient_at_the_boundary_before(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    _, at_state = full_bptt(core, case)
    cuts = [*range(0, problem.steps, problem.truncation), problem.steps]
    _, _, cut, _ = update(core, Oracle(at_state[cuts]), problem.truncation, case)
    assert_close(cut.probe.grad[1:], cut.synthetic[:-1])
    assert_close(cut.probe.grad, at_state[cuts[:-1]])


def test_counter_in_closed_form():
    """7 steps in chunks of 3, 3 and 1, of a core that says how many steps it has made."""
    core, estimator = Counter(), Constant(10.0)
    truncated = Truncated(core, 3, estimator)
    output, state, (cut,) = truncated(torch.zeros(7, 1, 1), torch.zeros(1, 1))
    backward(output.sum(), [cut])
    assert output.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert state.tolist() == [[7]]
    assert cut.start.flatten().tolist() == [0, 3, 6]
    assert cut.end.flatten().tolist() == [3, 6, 7]
    # The increment of step k of a chunk of K is in K - k outputs of it and in the state it ends in.
    assert core.increment.grad == (3 + 2 + 1) + (3 + 2 + 1) + 1 + 10 * 7
    assert estimator.target.flatten().tolist() == [3 + 10, 3 + 10, 1 + 10]


def test_leaky_integrator_in_closed_form():
    """Targets shrink by the leak: sum of leak^k over the chunk's steps, then the future's."""
    core, leak = Leaky(2, 3, leak=0.5), 0.5
    estimator = Constant(4.0)
    output, _, (cut,) = Truncated(core, 3, estimator)(torch.zeros(5, 2, 2), torch.zeros(2, 3))
    backward(output.sum(), [cut])
    long = leak + leak**2 + leak**3 + leak**3 * 4.0
    short = leak + leak**2 + leak**2 * 4.0
    expected = torch.tensor([long, short])[:, None, None].expand(2, 2, 3)
    assert torch.equal(cut.probe.grad, expected)


# Law 5. One call of N chunks equals N calls of one.


@given(problem=problems(t0=any_t0, final=any_final, reset=any_reset), fitting=fittings)
def test_one_call_of_n_chunks_is_n_calls_of_one(build, problem, fitting):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    output, state, cut, _ = update(core, estimator, problem.truncation, case)
    at_once, fitted = gradients(core), gradients(estimator)

    found = [torch.zeros_like(g) for g in at_once]
    regressions = [torch.zeros_like(g) for g in fitted]
    carried = case.state
    for n in range(problem.chunks):
        begin = n * problem.truncation
        end = min(begin + problem.truncation, problem.steps)
        part = slice_case(case, begin, end, carried, last=end == problem.steps)
        one_output, carried, one, _ = update(core, estimator, problem.truncation, part)
        assert_close(one_output, output[begin:end])
        assert_close(one.end[0], cut.end[n])
        assert_close(one.synthetic[0], cut.synthetic[n])
        assert_close(one.probe.grad[0], cut.probe.grad[n])
        found = [a + b for a, b in zip(found, gradients(core))]
        regressions = [a + b for a, b in zip(regressions, gradients(estimator))]
    assert_close(carried, state)
    assert_close(found, at_once)
    if problem.final == "no" and problem.reset == "none":  # every call then has as many rows
        assert_close([r / problem.chunks for r in regressions], fitted)


# Law 6. Isolation.


@given(problem=problems(t0=any_t0, reset=any_reset), where=st.floats(0, 1))
def test_zero_gradient_isolates_chunks(build, problem, where):
    assume(problem.chunks > 1)
    chunk = int(where * (problem.chunks - 2))
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    end = (chunk + 1) * problem.truncation

    def gradient_of_inputs(y):
        x = case.x.clone().requires_grad_()
        output, _, interfaces = Truncated(core, problem.truncation, ZeroGradient())(
            x, case.state, case.t0, False, case.reset
        )
        assert backward(own_loss(output, y), interfaces) == {}
        return x.grad[:end]

    other = case.y.clone()
    other[end:] += 1
    assert torch.equal(gradient_of_inputs(case.y), gradient_of_inputs(other))


@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    hidden=st.sampled_from([(), (5,)]),
    knobs=st.sampled_from([(0.1, 0.1), (1.0, 0.5), (0.0, 0.5)]),
)
def test_first_update_of_a_fresh_estimator_is_plain_truncation(build, problem, hidden, knobs):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    plain, _, _, nothing = update(core, ZeroGradient(), problem.truncation, case)
    expected = gradients(core)
    fresh = SyntheticGradient(core.state_size, hidden, *knobs).double()
    output, _, cut, _ = update(core, fresh, problem.truncation, case)
    assert nothing == {}
    assert torch.equal(output, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients(core), expected))
    assert not cut.synthetic.any()


# Law 7. The value crosses the cut; the gradient doesn't.


@given(problem=problems(max_steps=4))
def test_gradcheck_holds_for_one_chunk_and_fails_for_two(build_smooth, problem):
    core = build_smooth(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    x = case.x.requires_grad_()

    def outputs(truncation):
        return lambda x: Truncated(core, truncation, ZeroGradient())(x, case.state)[0]

    assert torch.autograd.gradcheck(outputs(problem.steps), (x,), eps=1e-6, atol=1e-7)
    if problem.steps > 1:
        assert not torch.autograd.gradcheck(
            outputs(problem.steps - 1), (x,), eps=1e-6, atol=1e-7, raise_exception=False
        )


# Law 10. Where a sequence ends.


@given(problem=problems(t0=any_t0, final=("yes", "some")), fitting=fittings)
def test_nothing_comes_back_from_beyond_the_end(build, problem, fitting):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    final = torch.as_tensor(case.final).expand(problem.batch)
    _, _, cut, _ = update(core, estimator, problem.truncation, case)
    assert not cut.synthetic[-1][final].any()
    begin = (problem.chunks - 1) * problem.truncation
    alone = case._replace(state=cut.start[-1], x=case.x[begin:], y=case.y[begin:])
    _, at_state = full_bptt(core, alone._replace(t0=case.t0 + begin))
    assert_close(cut.probe.grad[-1][final], at_state[0][final])


@given(problem=problems(final=("no", "yes")), fitting=fittings, where=st.floats(0, 1))
def test_reset_in_the_middle_is_two_sequences_apart(build, problem, fitting, where):
    """Cut on a multiple of K, so that both runs cut at the same steps."""
    assume(problem.chunks > 1)
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    estimator = fitting.estimator(core)
    split = problem.truncation * (1 + int(where * (problem.chunks - 2)))
    reset = torch.zeros(problem.steps, problem.batch, dtype=torch.bool)
    reset[split] = True
    case = problem.case(core)._replace(reset=reset)
    output, state, cut, _ = update(core, estimator, problem.truncation, case)
    together = gradients(core)

    first = slice_case(case._replace(reset=None), 0, split, case.state, last=True)
    head, _, before, _ = update(core, estimator, problem.truncation, first._replace(final=True))
    apart = gradients(core)
    fresh = core.initial_state(problem.batch)
    second = slice_case(case._replace(reset=None), split, problem.steps, fresh, last=True)
    tail, end, after, _ = update(core, estimator, problem.truncation, second._replace(t0=0))
    apart = [a + b for a, b in zip(apart, gradients(core))]

    assert_close(output, torch.cat([head, tail]))
    assert_close(state, end)
    assert_close(together, apart)
    n = split // problem.truncation
    assert_close(cut.synthetic, torch.cat([before.synthetic, after.synthetic]))
    assert_close(cut.probe.grad[:n], before.probe.grad)
    assert_close(cut.probe.grad[n + 1 :], after.probe.grad[1:])
    assert not cut.probe.grad[n].any(), "the state that a sequence ended in has the target zero"


@given(problem=problems(), fitting=fittings, where=st.floats(0, 1))
def test_no_gradient_crosses_a_reset_inside_a_chunk(build, problem, fitting, where):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    split = int(where * (problem.steps - 1))
    reset = torch.zeros(problem.steps, problem.batch, dtype=torch.bool)
    reset[split] = True
    x = case.x.clone().requires_grad_()
    output, _, _ = Truncated(core, problem.truncation, estimator)(x, case.state, reset=reset)
    gradient = torch.autograd.grad(own_loss(output[split:], case.y[split:]), x)[0]
    assert not gradient[:split].any()
    alone = case._replace(x=case.x[split : split + 1], state=core.initial_state(problem.batch))
    first, _, _ = Truncated(core, 1, ZeroGradient())(alone.x, alone.state)
    assert_close(output[split], first[0])


@given(problem=problems(reset=("none", "anywhere")), fitting=fittings)
def test_reset_at_the_first_step_forgets_the_carried_state(build, problem, fitting):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    reset = torch.zeros(problem.steps, problem.batch, dtype=torch.bool)
    reset = reset if case.reset is None else case.reset
    reset[0] = True
    case = case._replace(reset=reset, t0=5)
    output, _, cut, _ = update(core, estimator, problem.truncation, case)
    other = case._replace(state=case.state + 1, t0=0)
    same, _, _, _ = update(core, estimator, problem.truncation, other)
    assert torch.equal(output, same)
    assert not cut.probe.grad[0].any()


# Law 11. Units.


@given(problem=problems(t0=any_t0, final=any_final, reset=any_reset), fitting=fittings)
def test_copying_the_batch_changes_no_estimator_gradient(build, problem, fitting):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    _, _, cut, result = update(core, estimator, problem.truncation, case)
    expected, core_expected = gradients(estimator), gradients(core)
    twice = case._replace(
        x=torch.cat([case.x, case.x], 1),
        y=torch.cat([case.y, case.y], 1),
        state=torch.cat([case.state, case.state]),
        t0=case.t0 if isinstance(case.t0, int) else torch.cat([case.t0, case.t0]),
        final=case.final if isinstance(case.final, bool) else torch.cat([case.final, case.final]),
        reset=None if case.reset is None else torch.cat([case.reset, case.reset], 1),
    )
    _, _, _, doubled = update(core, estimator, problem.truncation, twice)
    assert_close(gradients(estimator), expected)
    assert_close(doubled["estimator_error"], result["estimator_error"])
    assert_close(gradients(core), [2 * g for g in core_expected])


@given(
    problem=problems(t0=any_t0, final=any_final, reset=any_reset),
    fitting=fittings,
    power=st.integers(-10, 10),
)
def test_unit_changes_no_estimator_gradient(build, problem, fitting, power):
    """A power of two, so that equality is exact."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case, estimator = problem.case(core), fitting.estimator(core)
    _, _, _, result = update(core, estimator, problem.truncation, case)
    expected, core_expected = gradients(estimator), gradients(core)
    unit = 2.0**power
    _, _, _, scaled = update(core, estimator, problem.truncation, case, unit)
    assert all(torch.equal(a, b) for a, b in zip(gradients(estimator), expected))
    assert torch.equal(scaled["estimator_error"], result["estimator_error"])
    assert all(torch.equal(a, unit * b) for a, b in zip(gradients(core), core_expected))


@pytest.mark.parametrize("unit", [1.0, 0.5])
def test_a_mean_over_batch_and_time_with_its_unit_is_the_sum(build, unit):
    """What a training loop writes: loss.mean() with unit = 1 / (T * B)."""
    core = build(2, 3, 0)
    problem = Problem(7, 3, 3, 2, 3, seed=3)
    case, estimator = problem.case(core), Fitting((), 0.7, 0.7, 1).estimator(core)
    update(core, estimator, problem.truncation, case)
    expected = gradients(estimator)
    truncated = Truncated(core, problem.truncation, estimator)
    truncated.zero_grad()
    output, _, interfaces = truncated(case.x, case.state)
    nats = 0.5 * (output - case.y).square().sum(-1)
    backward(unit * nats.mean(), interfaces, unit / nats.numel())
    assert_close(gradients(estimator), expected)
