"""Core: ``step`` is the specification, ``forward`` equals its loop (law 9)."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import Counter, any_reset, any_t0, assert_close, own_loss, problems
from torch.func import functional_call

from dnirnn import LSTM, Core
from dnirnn.unroll import Chunks, advance


def loop(core, case):
    """The loop over step, row by row: (outputs, the states after each step)."""
    rows = []
    for b in range(case.x.shape[1]):
        state, t = case.state[b : b + 1], int(torch.as_tensor(case.t0).expand(len(case.state))[b])
        outputs, states = [], []
        for i, x in enumerate(case.x[:, b : b + 1]):
            if case.reset is not None and case.reset[i, b]:
                state, t = core.initial_state(1), 0
            output, state = core.step(x, state, t)
            outputs.append(output)
            states.append(state)
            t += 1
        rows.append((torch.cat(outputs), torch.cat(states)))
    outputs, states = zip(*rows)
    return torch.stack(outputs, 1), torch.stack(states, 1)


@given(problem=problems(t0=any_t0, reset=any_reset))
def test_forward_is_the_loop_of_step(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    outputs, states = loop(core, case)
    output, state = core(case.x, case.state, case.t0, case.reset)
    assert_close(output, outputs)
    assert_close(state, states[-1])


@given(problem=problems(t0=any_t0, reset=any_reset), where=st.floats(0, 1))
def test_splitting_anywhere_changes_nothing(build, problem, where):
    """With the right t0, and gradients too: nothing is cut between two calls of forward."""
    assume(problem.steps > 1)
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    split = 1 + int(where * (problem.steps - 2))

    def gradients_of(outputs, state):
        loss = (outputs * case.y).sum() + state.square().sum()
        return torch.autograd.grad(loss, list(core.parameters()), materialize_grads=True)

    whole = core(case.x, case.state, case.t0, case.reset)
    resets = (None, None) if case.reset is None else (case.reset[:split], case.reset[split:])
    head, state = core(case.x[:split], case.state, case.t0, resets[0])
    t = advance(case.t0, case.reset, split)
    tail, state = core(case.x[split:], state, t, resets[1])
    assert_close(torch.cat([head, tail]), whole[0])
    assert_close(state, whole[1])
    assert_close(gradients_of(torch.cat([head, tail]), state), gradients_of(*whole))


@given(problem=problems(t0=any_t0, reset=("anywhere",)))
def test_a_ragged_batch_gives_what_each_sequence_gives_alone(build, problem):
    """Sequences of any lengths end to end in each row: outputs, states, gradients of inputs."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    case.reset[0] = True

    def run(x, state, t0=0, reset=None):
        x = x.clone().requires_grad_()
        output, ended = core(x, state, t0, reset)
        y = case.y[begin:end, rows]
        return output, ended, torch.autograd.grad((output * y).sum(), x, materialize_grads=True)[0]

    begin, end, rows = 0, problem.steps, slice(None)
    together = run(case.x, case.state, case.t0, case.reset)
    for b in range(problem.batch):
        rows, starts = slice(b, b + 1), case.reset[:, b].nonzero().flatten().tolist()
        for begin, end in zip(starts, [*starts[1:], problem.steps]):
            alone = run(case.x[begin:end, rows], core.initial_state(1))
            assert_close(together[0][begin:end, rows], alone[0])
            assert_close(together[2][begin:end, rows], alone[2])
        assert_close(together[1][rows], alone[1])


@settings(max_examples=5)
@given(problem=problems(t0=any_t0, reset=any_reset, max_steps=6))
def test_gradients_are_the_derivatives(build_smooth, problem):
    """gradcheck along random directions, of inputs, state and every parameter."""
    core = build_smooth(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    names, values = zip(*core.named_parameters())

    def run(x, state, *values):
        parameters = dict(zip(names, values))
        return functional_call(core, parameters, (x, state, case.t0, case.reset))

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (case.x, case.state, *values)]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, atol=1e-6)


@given(problem=problems(t0=any_t0, reset=any_reset))
def test_chunks_carry_the_state_and_count_on(build, problem):
    """The values of unroll are forward's, wherever it cuts, and t counts on from a reset."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    outputs, states = loop(core, case)
    chunks = Chunks(problem.steps, problem.truncation, case.t0, case.reset)
    output, sent, *rest = core.unroll(case.x, case.state, None, chunks)
    ends = [min((n + 1) * problem.truncation, problem.steps) - 1 for n in range(problem.chunks)]
    assert_close(output, outputs)
    assert_close(sent, states[ends])
    assert rest == [None, None, None]


@given(problem=problems())
def test_probe_is_added_to_the_state_that_a_chunk_starts_from(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    probe = torch.randn(problem.chunks, *case.state.shape, dtype=torch.float64)
    chunks = Chunks(problem.steps, problem.truncation)
    output, sent, *_ = core.unroll(case.x, case.state, probe, chunks)
    state = case.state
    for n in range(problem.chunks):
        rows = slice(n * problem.truncation, (n + 1) * problem.truncation)
        start = case._replace(x=case.x[rows], state=state + probe[n], t0=rows.start)
        outputs, states = loop(core, start)
        assert_close(output[rows], outputs)
        assert_close(sent[n], states[-1])
        state = sent[n]


@given(problem=problems(t0=any_t0, reset=any_reset))
def test_a_faster_unrolling_of_dense_targets_is_the_generic_one(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    probe = torch.zeros(
        problem.steps, *case.state.shape, dtype=torch.float64, requires_grad=True
    )
    chunks = Chunks(problem.steps, problem.truncation, case.t0, case.reset, dense=True)
    arguments = (case.x, case.state, probe, chunks)
    results = []
    for output, sent, entered, *_ in (core.unroll(*arguments), Core.unroll(core, *arguments)):
        loss = own_loss(output, case.y) + sent.square().sum()
        results.append((output, sent, entered, torch.autograd.grad(loss, probe)[0]))
    assert_close(*results)


@given(problem=problems(reset=("none", "anywhere")))
def test_a_reset_comes_after_the_probe(build, problem):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    reset = torch.zeros(problem.steps, problem.batch, dtype=torch.bool)
    reset = reset if case.reset is None else case.reset
    reset[:: problem.truncation] = True
    probe = torch.randn(problem.chunks, *case.state.shape, dtype=torch.float64)
    chunks = Chunks(problem.steps, problem.truncation, 0, reset)
    without = core.unroll(case.x, case.state, None, chunks)
    with_probe = core.unroll(case.x, case.state, probe, chunks)
    assert torch.equal(with_probe[0], without[0]) and torch.equal(with_probe[1], without[1])


def test_counter_counts_from_its_last_reset():
    core = Counter()
    reset = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 0], [1, 1]]).bool()
    output, state = core(torch.zeros(5, 2, 1), torch.full((2, 1), 10.0), 0, reset)
    assert output[..., 0].T.tolist() == [[11, 12, 1, 2, 1], [1, 2, 3, 4, 1]]
    assert state.tolist() == [[1], [1]]


@pytest.mark.parametrize("t0", [0, 3, torch.tensor([3, 5])], ids=["zero", "int", "rows"])
@pytest.mark.parametrize("truncation", [1, 2, 3, 9])
def test_a_core_is_told_the_steps_since_the_sequence_started(t0, truncation):
    """t0 counts on over chunks; a reset sets it to 0 in its row."""

    class Teller(Counter):
        def step(self, x_BI, state_BS, t):
            said = torch.as_tensor(t).expand(len(state_BS)).float()[:, None]
            return said, state_BS + self.increment

    reset = torch.zeros(5, 2, dtype=torch.bool)
    reset[2, 0] = reset[3, 0] = True
    state = torch.zeros(2, 1)
    x = torch.zeros(5, 2, 1)
    output, *_ = Teller().unroll(x, state, None, Chunks(5, truncation, t0))
    first = torch.as_tensor(t0).expand(2)
    assert output[..., 0].T.tolist() == [[int(t) + i for i in range(5)] for t in first]
    output, *_ = Teller().unroll(x, state, None, Chunks(5, truncation, t0, reset))
    assert output[..., 0].T.tolist() == [
        [int(first[0]), int(first[0]) + 1, 0, 0, 1],
        [int(first[1]) + i for i in range(5)],
    ]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_initial_state_is_zero_in_at_least_float32(dtype, expected):
    state = LSTM(3, 4, 2).to(dtype).initial_state(5)
    assert state.shape == (5, 16) and state.dtype == expected and not state.any()
    assert LSTM(3, 4, device="meta").initial_state(2).device.type == "meta"


def test_step_is_what_a_core_must_write():
    with pytest.raises(TypeError, match="step"):
        Core()
