"""Truncated: chunks, shapes, the state between calls, and what it keeps away from a graph."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_final, any_reset, any_t0, assert_close, fittings, own_loss, problems

from dnirnn import LSTM, SyntheticGradient, Truncated, ZeroGradient, backward


@given(problem=problems(t0=any_t0, final=any_final, reset=any_reset), fitting=fittings)
def test_shapes(build, problem, fitting):
    """One stacked Interface of N = ceil(T / K) cuts, whatever the core."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    cuts = (problem.chunks, problem.batch, core.state_size)
    for estimator in (fitting.estimator(core), ZeroGradient()):
        truncated = Truncated(core, problem.truncation, estimator)
        output, state, interfaces = truncated(
            case.x, case.state, case.t0, case.final, case.reset
        )
        (cut,) = interfaces
        assert output.shape == (problem.steps, problem.batch, core.output_size)
        assert state.shape == (problem.batch, core.state_size)
        assert cut.end.shape == cut.start.shape == cuts
        assert cut.estimator is estimator
        if isinstance(estimator, ZeroGradient):
            assert cut.synthetic is None and cut.probe is None
        else:
            assert cut.synthetic.shape == cut.probe.shape == cuts
            assert cut.probe.requires_grad and cut.probe.is_leaf and not cut.probe.any()


@given(problem=problems(t0=any_t0, reset=any_reset))
def test_truncation_changes_no_value(build, problem):
    """Only gradients are cut: the outputs and the last state are the whole unroll's."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    truncated = Truncated(core, problem.truncation, ZeroGradient())
    output, state, _ = truncated(case.x, case.state, case.t0, False, case.reset)
    expected, expected_state = core(case.x, case.state, case.t0, case.reset)
    assert_close(output, expected)
    assert_close(state, expected_state)


@given(problem=problems(t0=any_t0, reset=any_reset), beyond=st.integers(0, 50))
def test_a_truncation_longer_than_the_sequence_is_one_short_chunk(build, problem, beyond):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    long = Truncated(core, problem.steps + beyond, ZeroGradient())
    output, state, (cut,) = long(case.x, case.state, case.t0, False, case.reset)
    expected = Truncated(core, problem.steps, ZeroGradient())(
        case.x, case.state, case.t0, False, case.reset
    )
    assert len(cut.end) == 1
    assert torch.equal(output, expected[0]) and torch.equal(state, expected[1])


@given(problem=problems(), fitting=fittings)
def test_nothing_attached_leaves_but_the_output_and_sent(build, problem, fitting):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    start = case.state.clone().requires_grad_()
    output, state, (cut,) = Truncated(core, problem.truncation, fitting.estimator(core))(
        case.x, start
    )
    assert output.requires_grad and cut.end.requires_grad
    assert not (state.requires_grad or cut.start.requires_grad or cut.synthetic.requires_grad)
    backward(own_loss(output, case.y), [cut])
    sent_back = torch.zeros_like(start) if start.grad is None else start.grad
    if cut.estimator.bootstrap(cut) is None:
        assert_close(sent_back, cut.probe.grad[0])


@given(problem=problems(t0=any_t0, reset=any_reset), fitting=fittings)
def test_without_grad_it_only_runs_the_core(build, problem, fitting):
    """Evaluation: no probe, no synthetic gradient, the same numbers, bit for bit."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    truncated = Truncated(core, problem.truncation, fitting.estimator(core))
    output, state, _ = truncated(case.x, case.state, case.t0, True, case.reset)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            same, end, (cut,) = truncated(case.x, case.state, case.t0, True, case.reset)
        assert torch.equal(same, output) and torch.equal(end, state)
        assert cut.probe is None and cut.synthetic is None
        assert not (same.requires_grad or cut.end.requires_grad)


def test_leaves_its_inputs_alone(path):
    core = LSTM(2, 3)
    x, state = torch.randn(5, 2, 2), torch.randn(2, 6)
    reset = torch.rand(5, 2) < 0.5
    t0 = torch.tensor([3, 4])
    kept = [tensor.clone() for tensor in (x, state, reset, t0)]
    output, _, cuts = Truncated(core, 2, SyntheticGradient(6))(x, state, t0, True, reset)
    backward(output.sum(), cuts)
    assert all(torch.equal(a, b) for a, b in zip((x, state, reset, t0), kept))


def test_final_rows_are_zero_and_taught(path):
    core, estimator = LSTM(2, 3), SyntheticGradient(6)
    torch.nn.init.ones_(estimator.layers[0].bias)
    final = torch.tensor([True, False, True])
    x, state = torch.randn(4, 3, 2), core.initial_state(3)
    _, _, (cut,) = Truncated(core, 2, estimator)(x, state, final=final)
    assert torch.equal(cut.chunks.final, final)
    assert cut.synthetic[0].all() and cut.synthetic[1, 1].all()
    assert not cut.synthetic[1, [0, 2]].any()
    for none in (False, torch.zeros(3, dtype=torch.bool)):
        _, _, (cut,) = Truncated(core, 2, estimator)(x, state, final=none)
        assert cut.synthetic.all()


def test_a_reset_zeroes_the_chunk_before_it_only_where_it_is_at_the_cut(path):
    core, estimator = LSTM(2, 3), SyntheticGradient(6)
    torch.nn.init.ones_(estimator.layers[0].bias)
    x, state = torch.randn(7, 2, 2), core.initial_state(2)
    reset = torch.zeros(7, 2, dtype=torch.bool)
    reset[0, 0] = reset[3, 0] = reset[5, 1] = True
    _, _, (cut,) = Truncated(core, 3, estimator)(x, state, reset=reset)
    assert cut.synthetic.any(-1).tolist() == [[False, True], [True, True], [True, True]]


def test_parameters_are_the_cores_and_the_estimators():
    core, estimator = LSTM(2, 3), SyntheticGradient(6)
    names = {name.split(".")[0] for name, _ in Truncated(core, 2, estimator).named_parameters()}
    assert names == {"core", "estimator"}
    assert "truncation=2" in repr(Truncated(core, 2, estimator))
