"""Deep, Every and Dilated: each against a loop written from its equations, and what it calls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Clock, Leaky, any_reset, any_t0, assert_close, problems
from torch import nn

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    Core,
    Deep,
    Dilated,
    Every,
    NormLSTM,
    WeightDrop,
    draw_masks,
)
from dnirnn.unroll import Chunks


class Recorder(Core):
    """Another core, writing down the calls that it gets: the shapes of the inputs, and t."""

    def __init__(self, core: Core):
        super().__init__()
        self.core, self.calls = core, []
        self.input_size, self.output_size = core.input_size, core.output_size
        self.state_size = core.state_size

    def step(self, x_BI, state_BS, t):
        self.calls.append(("step", *x_BI.shape))
        return self.core.step(x_BI, state_BS, t)

    def forward(self, x_TBI, state_BS, t0=0, reset=None):
        self.calls.append(("forward", *x_TBI.shape, t0))
        return self.core(x_TBI, state_BS, t0, reset)

    def unroll(self, x_TBI, state_BS, probe, chunks, estimator=None):
        self.calls.append((f"unroll, dense={chunks.dense}, vjp={chunks.vjp}", *x_TBI.shape))
        return self.core.unroll(x_TBI, state_BS, probe, chunks, estimator)


def sequences(case):
    """(row, begin, end) of every sequence of a case in which each row starts one at step 0."""
    reset = torch.zeros(case.x.shape[:2], dtype=torch.bool) if case.reset is None else case.reset
    for b in range(case.x.shape[1]):
        starts = [0, *(i for i in reset[:, b].nonzero().flatten().tolist() if i)]
        for begin, end in zip(starts, [*starts[1:], len(case.x)]):
            yield b, begin, end


# Deep.


def deep_by_hand(core, case, dropout=0.0):
    """A loop over steps, and in it a loop over layers, on each core's step."""
    states = list(case.state.split([layer.state_size for layer in core.cores], 1))
    batch, outputs = len(case.state), []
    t = torch.as_tensor(case.t0).expand(batch)
    for i, x in enumerate(case.x):
        if case.reset is not None:
            states = [torch.where(case.reset[i, :, None], 0, state) for state in states]
            t = torch.where(case.reset[i], 0, t)
        y = x
        for depth, layer in enumerate(core.cores):
            reads = y
            if depth and dropout:
                reads = reads * core.masks[depth - 1](batch, t)[0] / (1 - dropout)
            if depth and core.skip:
                reads = torch.cat([reads, x], 1)
            said, states[depth] = layer.step(reads, states[depth], t)
            y = said + y if depth and core.residual else said
        outputs.append(y)
        t = t + 1
    return torch.stack(outputs), torch.cat(states, 1)


@given(
    problem=problems(t0=any_t0, reset=any_reset),
    residual=st.booleans(),
    skip=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    same_mask=st.booleans(),
    training=st.booleans(),
)
def test_deep_is_its_cores_one_on_another(
    path, problem, residual, skip, dropout, same_mask, training
):
    torch.manual_seed(problem.seed)
    inputs, hidden = problem.input_size, problem.hidden_size
    width = hidden + inputs * skip
    core = Deep(
        [LSTM(inputs, hidden), Clock(width, hidden), LSTM(width, hidden, 2)],
        residual=residual,
        skip=skip,
        dropout=dropout,
        same_mask=same_mask,
    )
    core = core.double().train(training)
    draw_masks(core)
    case = problem.case(core)
    expected, ended = deep_by_hand(core, case, dropout * training)
    output, state = core(case.x, case.state, case.t0, case.reset)
    assert_close(output, expected)
    assert_close(state, ended)
    parameters = list(core.parameters())
    wanted = torch.autograd.grad((expected * case.y).sum() + ended.sum(), parameters)
    found = torch.autograd.grad((output * case.y).sum() + state.sum(), parameters)
    assert_close(found, wanted)


def test_deep_of_lstms_is_torchs(path):
    core, oracle = Deep([LSTM(3, 4), LSTM(4, 4)]).double(), nn.LSTM(3, 4, 2).double()
    for ours, theirs in zip(core.parameters(), oracle.parameters()):
        theirs.data.copy_(ours)
    x = torch.randn(5, 2, 3).double()
    output, state = core(x, core.initial_state(2))
    expected, (h, c) = oracle(x)
    assert_close(output, expected)
    assert_close(state, torch.cat([h[0], c[0], h[1], c[1]], 1))


def test_deep_dropout_is_between_layers_with_one_mask_a_step_or_one_for_all():
    """Layers that say what they read, so that what comes out is the masks' product."""

    class Same(Leaky):
        def step(self, x_BI, state_BS, t):
            return x_BI, state_BS

    x = torch.ones(6, 2, 64)
    for same_mask in (False, True):
        core = Deep([Same(64, 64), Same(64, 64)], dropout=0.25, same_mask=same_mask)
        output, _ = core(x, core.initial_state(2))
        assert set(output.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
        assert bool((output == output[0]).all()) == same_mask
        assert torch.equal(core.eval()(x, core.initial_state(2))[0], x)
    alone = Deep([Same(64, 64)], dropout=0.25)
    assert torch.equal(alone(x, alone.initial_state(2))[0], x)


def test_deep_calls_each_core_once():
    core = Deep([Recorder(LSTM(3, 4)), Recorder(RNN(4, 5))])
    x, state = torch.randn(7, 2, 3), torch.randn(2, 13)
    core(x, state, 3)
    core.unroll(x, state, None, Chunks(7, 2))
    core.unroll(x, state, torch.zeros(7, 2, 13), Chunks(7, 2, dense=True))
    core.unroll(x, state, torch.zeros(4, 2, 13), Chunks(7, 2, vjp=True))
    for layer, inputs in zip(core.cores, (3, 4)):
        assert layer.calls == [
            ("forward", 7, 2, inputs, 3),
            ("unroll, dense=False, vjp=False", 7, 2, inputs),
            ("unroll, dense=True, vjp=False", 7, 2, inputs),
            ("unroll, dense=False, vjp=True", 7, 2, inputs),
        ]


# Every.


def every_by_hand(core, period, gather, x):
    """One sequence x [T, I] from its start, on the inner core's step: outputs [T, O]."""
    inner, ticks, held = core.initial_state(1), 0, torch.zeros(1, core.output_size).double()
    outputs = []
    for t in range(len(x)):
        if (t + 1) % period == 0:
            missed = x[t - period + 1 : t + 1]
            reads = {"last": x[t], "mean": missed.mean(0), "concat": missed.flatten()}[gather]
            held, inner = core.step(reads[None], inner, ticks)
            ticks += 1
        outputs.append(held)
    return torch.cat(outputs)


@pytest.mark.parametrize("gather", ["last", "mean", "concat"])
@given(
    problem=problems(reset=any_reset, max_steps=14),
    period=st.integers(1, 5),
    split=st.integers(0, 14),
)
def test_every_ticks_on_what_it_gathered(gather, problem, period, split):
    """In one call and in two; Clock's output shows the t that it is told."""
    torch.manual_seed(problem.seed)
    reads = problem.input_size * (period if gather == "concat" else 1)
    core = Every(Clock(reads, problem.hidden_size).double(), period, gather)
    assert (core.input_size, core.output_size) == (problem.input_size, problem.hidden_size)
    case = problem.case(core)
    start = core.initial_state(problem.batch)
    output, state = core(case.x, start, 0, case.reset)
    for b, begin, end in sequences(case):
        expected = every_by_hand(core.core, period, gather, case.x[begin:end, b])
        assert_close(output[begin:end, b], expected)
    if case.reset is None:
        split = split % (problem.steps + 1)
        tail = case.x[split:]
        now = core(case.x[:split], start)[1] if split else start
        if len(tail):
            tail, now = core(tail, now, split)
            assert_close(tail, output[split:])
        assert_close(now, state)


@pytest.mark.parametrize(("gather", "kept"), [("last", 0), ("mean", 3), ("concat", 9)])
def test_every_names_the_parts_of_its_state(gather, kept):
    core = Every(RNN(12 if gather == "concat" else 3, 5), 4, gather)
    assert core.parts == [5, 5, kept] and core.state_size == 10 + kept
    x = torch.randn(6, 2, 3)
    output, state = core(x, core.initial_state(2))
    inner, held, gathered = state.split(core.parts, 1)
    assert torch.equal(inner, held) and torch.equal(held, output[-1]), "an RNN says its state"
    expected = {"last": x[:0], "mean": x[4:].sum(0, keepdim=True), "concat": x[3:]}[gather]
    assert_close(gathered, expected.transpose(0, 1).flatten(1), 1e-6)


@pytest.mark.parametrize("gather", ["last", "mean", "concat"])
def test_every_calls_its_core_once_for_all_ticks_and_not_at_all_for_none(gather):
    inner = Recorder(RNN(12 if gather == "concat" else 3, 5))
    core = Every(inner, 4, gather)
    x, state = torch.randn(11, 2, 3), torch.zeros(2, core.state_size)
    core(x, state, 6)
    core(x[:3], state, 8)
    assert inner.calls == [("forward", 3, 2, inner.input_size, 1)]


# Dilated.

TORCH_CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def torch_cell(kind, cell):
    """torch's cell with the parameters of ours."""
    found = TORCH_CELLS[kind](cell.input_size, cell.output_size).double()
    for ours, theirs in zip(cell.parameters(), found.parameters()):
        theirs.data.copy_(ours)
    return found


def dilated_by_hand(cells, dilations, kind, x):
    """One sequence x [T, I] from its start: s_t = cell(x_t, s_{t-d}), layer after layer."""
    for cell, d in zip(cells, dilations):
        zero = torch.zeros(1, cell.hidden_size).double()
        states, outputs = {}, []
        for t in range(len(x)):
            before = states.get(t - d, (zero, zero) if kind == "lstm" else zero)
            states[t] = cell(x[t : t + 1], before)
            outputs.append(states[t][0] if kind == "lstm" else states[t])
        x = torch.cat(outputs)
    return x


@pytest.mark.parametrize("kind", TORCH_CELLS)
@given(
    problem=problems(t0=any_t0, reset=any_reset, max_steps=11),
    dilations=st.lists(st.integers(1, 13), min_size=1, max_size=3),
)
def test_dilated_recurs_from_d_steps_ago(path, kind, problem, dilations):
    torch.manual_seed(problem.seed)
    core = Dilated(problem.input_size, problem.hidden_size, dilations, kind).double()
    cells = [torch_cell(kind, layer.cell) for layer in core.cores]
    case = problem.case(core)
    output, _ = core(case.x, core.initial_state(problem.batch), case.t0, case.reset)
    for b, begin, end in sequences(case):
        expected = dilated_by_hand(cells, dilations, kind, case.x[begin:end, b])
        assert_close(output[begin:end, b], expected)


def test_dilated_keeps_its_last_states_oldest_first():
    core = Dilated(3, 4, [3])
    x = torch.randn(8, 2, 3)
    output, state = core(x, core.initial_state(2))
    assert torch.equal(state.view(2, 3, 4).transpose(0, 1), output[-3:]), "an RNN says its state"
    _, state = core(x[:2], core.initial_state(2))
    assert not state[:, :4].any()
    assert Dilated(3, 4, [1, 2, 4], "lstm").state_size == 7 * 8


def test_dilated_folds_the_dilation_into_the_batch():
    core = Dilated(3, 4, [3])
    layer = core.cores[0]
    layer.cell = Recorder(layer.cell)
    core(torch.randn(11, 2, 3), core.initial_state(2))
    core(torch.randn(2, 2, 3), core.initial_state(2))
    assert layer.cell.calls == [
        ("forward", 3, 6, 3, 0), ("forward", 1, 4, 3, 0), ("forward", 1, 4, 3, 0)
    ]  # fmt: skip


# What does not fit.


@pytest.mark.parametrize(
    ("error", "make", "named"),
    [
        (TypeError, lambda: Deep([nn.Linear(3, 4)]), "cores must be .*got a Linear"),
        (ValueError, lambda: Deep([]), "cores must be at least one"),
        (ValueError, lambda: Deep([RNN(3, 4), RNN(3, 4)]), r"cores\[1\] .*input_size 4.*got 3"),
        (
            ValueError,
            lambda: Deep([RNN(3, 4), RNN(4, 4)], skip=True),
            r"cores\[1\] .*input_size 7.*got 4",
        ),
        (
            ValueError,
            lambda: Deep([RNN(3, 4), RNN(4, 5)], residual=True),
            r"cores\[1\] .*output_size 4.*got 5",
        ),
        (ValueError, lambda: Deep([RNN(3, 4)], dropout=1.0), "dropout .*1.0"),
        (TypeError, lambda: Every(nn.RNN(3, 4), 2), "core must be a dnirnn.Core; got RNN"),
        (ValueError, lambda: Every(RNN(3, 4), 0), "period .*got 0"),
        (ValueError, lambda: Every(RNN(3, 4), 2.0), "period .*got 2.0"),
        (ValueError, lambda: Every(RNN(3, 4), 2, "first"), "gather .*got 'first'"),
        (ValueError, lambda: Every(RNN(3, 4), 2, "concat"), "core .*multiple of the period, 2.*3"),
        (ValueError, lambda: Dilated(3, 4, [1, 2], "elman"), "cell .*got 'elman'"),
        (ValueError, lambda: Dilated(3, 4, []), r"dilations .*got \[\]"),
        (ValueError, lambda: Dilated(3, 4, [1, 0]), r"dilations .*got 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(error, make, named):
    with pytest.raises(error, match=named):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Deep([LSTM(8, 16), GRU(16, 16), RNN(16, 16)], residual=True, dropout=0.2),
        lambda: Every(LSTM(24, 16), 3, "concat"),
        lambda: Every(GRU(8, 16), 2, "mean"),
        lambda: Dilated(8, 16, [1, 3], "lstm"),
        lambda: Dilated(8, 16, [2, 4], "gru"),
    ],
    ids=["deep", "every-concat", "every-mean", "dilated-lstm", "dilated-gru"],
)
def test_the_state_stays_float32_in_bfloat16_and_under_autocast(make):
    core, x = make(), torch.randn(7, 2, 8)
    expected = core(x, core.initial_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = core(x, core.initial_state(2))
    assert found[1].dtype == torch.float32
    for one, other in zip(found, expected):
        assert_close(one, other, 5e-2)
    output, state = core.bfloat16()(x.bfloat16(), core.initial_state(2))
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert_close(state, expected[1], 5e-2)


@pytest.mark.parametrize("with_reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Deep([LSTM(3, 4), NormLSTM(4, 4, zoneout_c=0.3)], residual=True, dropout=0.2),
        lambda: WeightDrop(LSTM(3, 4), 0.5),
        lambda: Every(LSTM(6, 4), 2, "concat"),
        lambda: Every(LSTM(3, 4), 2, "mean"),
        lambda: Dilated(3, 4, [1, 2, 7], "lstm"),
    ],
    ids=["deep", "weight-drop", "every-concat", "every-mean", "dilated"],
)
def test_forward_compiles_whole(make, with_reset):
    core = make().double()
    x, state = torch.randn(5, 2, 3).double(), torch.randn(2, core.state_size).double()
    reset = torch.rand(5, 2) < 0.3 if with_reset else None
    torch._dynamo.reset()
    compiled = torch.compile(core.forward, fullgraph=True, backend="aot_eager")
    results = []
    for forward in (core, compiled):
        output, ended = forward(x, state, 3, reset)
        loss = output.square().sum() + ended.sum()
        results.append([output, ended, *torch.autograd.grad(loss, list(core.parameters()))])
    assert_close(results[1], results[0])
