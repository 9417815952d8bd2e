"""Clockwork: the paper's recurrence over one matrix with zero blocks; no tick, no cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_calls import needs_op
from strategies import assert_close, seeds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dnirnn import Clockwork, Core, ops

CELLS = ["rnn", "lstm"]
PERIODS = [(1,), (3,), (1, 2), (2, 3, 7), (1, 2, 4, 8)]


def dense(core):
    """(W_ih [G H, I], W_hh [G H, H], b [G H]) of all units, with the zero blocks written out."""
    gates = 4 if core.cell == "lstm" else 1
    count, size, width = len(core.periods), core.size, core.input_size
    w_ih = torch.zeros(gates, core.hidden_size, width, dtype=torch.float64)
    w_hh = torch.zeros(gates, core.hidden_size, core.hidden_size, dtype=torch.float64)
    bias = torch.zeros(gates, core.hidden_size, dtype=torch.float64)
    for i, part in enumerate(core.parts):
        inward, own, *biases = (p.detach().view(gates, size, -1) for p in part.parameters())
        rows = slice(i * size, (i + 1) * size)
        w_ih[:, rows] = inward[..., :width]
        w_hh[:, rows, rows] = own
        for j in range(i + 1, count):
            begin = width + (j - i - 1) * size
            w_hh[:, rows, j * size : (j + 1) * size] = inward[..., begin : begin + size]
        bias[:, rows] = (biases[0] + biases[1])[..., 0]
    return [p.flatten(0, 1).requires_grad_() for p in (w_ih, w_hh, bias)]


def paper(core, weights, x, state, t0):
    """All units at every step, those of the modules that tick kept: (outputs, h, c or None)."""
    w_ih, w_hh, bias = weights
    parts = state.view(len(state), len(core.periods), -1, core.size).unbind(2)
    h, c = (part.flatten(1) for part in (parts if core.cell == "lstm" else parts * 2))
    outputs = []
    for i, x_BI in enumerate(x):
        ticks = torch.tensor([(t0 + i) % period == 0 for period in core.periods])
        ticks = ticks.repeat_interleave(core.size)
        gates = x_BI @ w_ih.T + h @ w_hh.T + bias
        if core.cell == "rnn":
            new = torch.tanh(gates)
        else:
            a, f, g, o = gates.chunk(4, 1)
            cell = torch.sigmoid(f) * c + torch.sigmoid(a) * torch.tanh(g)
            new = torch.sigmoid(o) * torch.tanh(cell)
            c = torch.where(ticks, cell, c)
        h = torch.where(ticks, new, h)
        outputs.append(h)
    return torch.stack(outputs), h, c


@pytest.mark.parametrize("cell", CELLS)
@given(
    periods=st.sampled_from(PERIODS),
    steps=st.integers(1, 12),
    batch=st.integers(1, 3),
    size=st.integers(1, 3),
    t0=st.integers(0, 9),
    seed=seeds,
)
def test_equals_one_recurrence_with_zero_blocks(cell, path, periods, steps, batch, size, t0, seed):
    torch.manual_seed(seed)
    core = Clockwork(2, size * len(periods), periods, cell).double()
    x = torch.randn(steps, batch, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(batch, core.state_size, dtype=torch.float64, requires_grad=True)
    weights = dense(core)
    assert torch.equal(core.recurrent_weight(), weights[1])
    outputs, h, c = paper(core, weights, x, state, t0)
    output, last = core(x, state, t0)
    assert_close(output, outputs)
    parts = last.view(batch, len(periods), -1, size).unbind(2)
    assert_close(parts[0].flatten(1), h)
    if cell == "lstm":
        assert_close(parts[1].flatten(1), c)

    y, end = torch.randn_like(outputs), torch.randn_like(last)
    ended = [h, c] if cell == "lstm" else [h]
    by_module = torch.stack([part.unflatten(1, (-1, size)) for part in ended], 2).flatten(1)
    loss = (outputs * y).sum() + (by_module * end).sum()
    expected = torch.autograd.grad(loss, [x, state, *weights])
    loss = (output * y).sum() + (last * end).sum()
    found = torch.autograd.grad(loss, [x, state, *core.parameters()], materialize_grads=True)
    assert_close(found[:2], expected[:2])
    with torch.no_grad():
        for parameter, gradient in zip(core.parameters(), found[2:]):
            parameter.copy_(gradient)  # so that the blocks of the gradient are read as the weights'
    blocks, (w_ih, w_hh, bias) = dense(core), expected[2:]
    assert_close(blocks[0], w_ih)
    zero = below_the_diagonal(core)
    assert_close(blocks[1], w_hh.masked_fill(zero, 0))
    assert_close(blocks[2], 2 * bias)  # of two biases, each with the gradient of their sum


def below_the_diagonal(core):
    """Where, in W_hh, a faster module would feed a slower one: [G H, H]."""
    module = torch.arange(core.hidden_size) // core.size
    return (module[:, None] > module).repeat(len(core.recurrent_weight()) // core.hidden_size, 1)


@pytest.mark.parametrize("cell", CELLS)
def test_zero_blocks_are_no_parameters(cell):
    core = Clockwork(3, 8, (1, 2, 4, 8), cell)
    zero = below_the_diagonal(core)
    weight = core.recurrent_weight()
    assert not weight[zero].any() and weight[~zero].all() and not weight.requires_grad
    gates = 4 if cell == "lstm" else 1
    expected = gates * 8 * (3 + 2) + int((~zero).sum())
    assert sum(p.numel() for p in core.parameters()) == expected


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_flows_from_fast_to_slow(cell):
    """With exactly zero gradient, over any number of steps."""
    core = Clockwork(3, 6, (1, 2, 3), cell).double()
    state = torch.randn(2, core.state_size, dtype=torch.float64, requires_grad=True)
    output, _ = core(torch.randn(9, 2, 3, dtype=torch.float64), state)
    size = core.state_size // 3
    for module in range(3):
        said = output[..., module * core.size : (module + 1) * core.size]
        gradient = torch.autograd.grad(said.sum(), state, retain_graph=True)[0]
        by_module = gradient.view(2, 3, size).abs().amax((0, 2))
        assert not by_module[:module].any() and by_module[module:].all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("t0", [0, 1, 5])
@pytest.mark.parametrize("steps", [1, 7, 16])
def test_a_module_that_does_not_tick_costs_nothing(cell, t0, steps, reference):
    """Multiplications are counted, forward and backward: a row of a module at each of its ticks."""
    periods, batch, width, size = (1, 2, 4, 8), 3, 5, 2
    gates = 4 if cell == "lstm" else 1
    core = Clockwork(width, size * len(periods), periods, cell)
    x, state = torch.randn(steps, batch, width), torch.randn(batch, core.state_size)
    state.requires_grad_()
    expected = 0
    for slower, period in enumerate(reversed(periods)):
        ticks = sum((t0 + i) % period == 0 for i in range(steps))
        expected += ticks * batch * 2 * (width + slower * size + size) * gates * size
    with FlopCounterMode(display=False) as forward:
        output, _ = core(x, state, t0)
    assert forward.get_total_flops() == expected
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    assert backward.get_total_flops() <= 2 * expected


class Rows(TorchDispatchMode):
    """Notes the steps and the width of what each cell's operator reads."""

    def __init__(self):
        super().__init__()
        self.read = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.name() == "dnirnn::tbptt":
            self.read.append((arguments[0].shape[0], arguments[0].shape[2]))
        return function(*arguments, **(options or {}))


@needs_op
@pytest.mark.parametrize("cell", CELLS)
def test_the_operator_runs_each_module_once_over_its_ticks(cell):
    """The slowest first, and not at all where it has no tick."""
    core = Clockwork(5, 8, (1, 2, 4, 8), cell)
    with Rows() as rows:
        core(torch.randn(7, 3, 5), torch.zeros(3, core.state_size), 1)
    assert rows.read == [(1, 5 + 2), (3, 5 + 4), (7, 5 + 6)]


@needs_op
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("missing", ["x", "output", "state", "ticks"])
def test_what_nobody_asks_for_is_left_out(cell, missing):
    """Gradients of the operator where there is none of one input or output, or no tick."""
    core = Clockwork(3, 6, (3, 4, 5), cell).double()
    x = torch.randn(2 if missing == "ticks" else 9, 2, 3, dtype=torch.float64)
    state = torch.randn(2, core.state_size, dtype=torch.float64, requires_grad=True)
    x.requires_grad_(missing != "x")
    found = []
    for forward in (core, lambda *arguments: Core.forward(core, *arguments)):
        output, last = forward(x, state, 1)
        loss = 0.0 if missing == "output" else output.square().sum()
        loss = loss if missing == "state" else loss + last.cos().sum()
        wanted = [state, *core.parameters()] + ([] if missing == "x" else [x])
        found.append(torch.autograd.grad(loss, wanted, materialize_grads=True))
    assert_close(*map(list, found))


@needs_op
@pytest.mark.parametrize("cell", CELLS)
def test_the_operator_is_traced_whole(cell):
    core = Clockwork(3, 6, (1, 2, 3), cell).double()
    x, state = torch.randn(5, 2, 3).double(), torch.randn(2, core.state_size).double()
    arguments = (x.requires_grad_(), state, [*core.parameters()], core.periods, 2)
    torch.library.opcheck(torch.ops.dnirnn.clockwork.default, arguments)
    if cell == "rnn":
        return  # Dynamo does not take a module that holds an nn.RNN
    torch._dynamo.reset()
    results = []
    for forward in (core, torch.compile(core, fullgraph=True, backend="aot_eager")):
        output, last = forward(x, state, 2)
        loss = output.square().sum() + last.sum()
        results.append([output, last, *torch.autograd.grad(loss, [x, *core.parameters()])])
    assert_close(results[1], results[0])


@needs_op
def test_it_has_no_second_derivative():
    core = Clockwork(3, 4, (1, 2))
    x = torch.randn(3, 2, 3, requires_grad=True)
    output, _ = core(x, core.initial_state(2))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@needs_op
@pytest.mark.parametrize("cell", CELLS)
def test_an_x_changed_before_the_backward_is_refused(cell):
    core = Clockwork(3, 4, (1, 2), cell)
    x = torch.randn(3, 2, 3)
    output, _ = core(x, core.initial_state(2))
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@needs_op
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("periods", [(1,), (1, 2)])
def test_a_state_changed_before_the_backward_changes_nothing(cell, periods):
    core = Clockwork(3, 4, periods, cell)
    x, start = torch.randn(3, 2, 3), torch.randn(2, core.state_size)
    found = []
    for factor in (1, 0):
        state = start.clone()
        output, _ = core(x, state)
        state.mul_(factor)
        found.append(torch.autograd.grad(output.sum(), list(core.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*found))


@needs_op
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("x", "state", "words"),
    [
        ((5, 3), (2, 8), "x must be .*got .*5, 3"),
        ((0, 2, 3), (2, 8), "x must be .*at least 1.*got .*0, 2, 3"),
        ((5, 2, 4), (2, 8), "x must be .*, 3.*got"),
        ((5, 2, 3), (2, 3), "state must be .*2, 8.*got .*2, 3"),
        ((5, 2, 3), (2, 16), "state must be .*2, 8.*got .*2, 16"),
        ((5, 2, 3), (1, 8), "state must be .*2, 8.*got .*1, 8"),
        ((5, 2, 3), (8,), "state must be .*2, 8.*got .*8"),
    ],
    ids=str,
)
def test_a_call_that_does_not_fit_is_named(cell, x, state, words):
    core = Clockwork(3, 8 if cell == "rnn" else 4, (1, 2, 4, 8), cell)
    with pytest.raises(ValueError, match=words):
        core(torch.randn(x), torch.zeros(state))


@needs_op
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(periods=[]), "periods must be of at least 1 step, one a module; got"),
        (dict(periods=[0, 1]), "periods must be of at least 1 step, one a module; got .*0, 1"),
        (dict(periods=[1, 2, 3]), "weights must be .* of 3 modules; got 8 tensors"),
    ],
)
def test_operands_that_do_not_fit_are_named(change, words):
    core = Clockwork(3, 4, (1, 2))
    given = dict(weights=list(core.parameters()), periods=[1, 2], t0=0) | change
    with pytest.raises(ValueError, match=words):
        ops.clockwork(torch.zeros(3, 2, 3), torch.zeros(2, 4), **given)


def test_bfloat16_says_what_it_is_given_and_keeps_a_float32_state(path):
    core = Clockwork(3, 8, (1, 4), "lstm").bfloat16()
    x = torch.randn(3, 2, 3, dtype=torch.bfloat16)
    for t0 in (0, 1):
        output, state = core(x, core.initial_state(2) + 0.3, t0)
        assert output.dtype == torch.bfloat16 and state.dtype == torch.float32
        loop, end = super(Clockwork, core).forward(x, core.initial_state(2) + 0.3, t0)
        assert loop.dtype == torch.bfloat16 and end.dtype == torch.float32
        assert_close(output, loop, 0.02)
        assert_close(state, end, 0.02)


@pytest.mark.parametrize("periods", [(), (0, 1), (2, 1), (1, 1), (1, 2.0), (True, 2), (-1,)])
def test_periods_that_are_not_ascending_ints_are_refused(periods):
    with pytest.raises(ValueError, match="periods must be .*ints of at least 1"):
        Clockwork(3, 4, periods)


@pytest.mark.parametrize(
    ("sizes", "options", "named"),
    [
        ((3, 5), {}, "hidden_size must be a multiple of the 2 periods; got 5"),
        ((3, 0), {}, "hidden_size must be an int of at least 1; got 0"),
        ((0, 4), {"cell": "lstm"}, "input_size must be an int of at least 1"),
        ((3, 4), {"cell": "gru"}, "cell must be one of rnn, lstm; got 'gru'"),
    ],
)
def test_what_does_not_fit_is_named(sizes, options, named):
    with pytest.raises(ValueError, match=named):
        Clockwork(*sizes, (1, 2), **options)
