"""torch.library's checks of the operator, torch.compile and autocast (law 8)."""

import pytest
import torch
from op_calls import make_call, needs_op
from strategies import Clock, Leaky, assert_close

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    Clockwork,
    Dilated,
    SyntheticGradient,
    Truncated,
    ZeroGradient,
    backward,
    ops,
)

CALLS = {
    "plain": dict(steps=3, batch=2, inputs=3, hidden_size=4),
    "chunks": dict(steps=6, batch=2, inputs=3, hidden_size=4, truncation=2, probe="chunks"),
    "everything": dict(
        steps=6, batch=2, inputs=3, hidden_size=5, layers=2, truncation=2, probe="steps",
        reset=True, estimator=(4,),
    ),
    "everything, a short last chunk": dict(
        steps=5, batch=2, inputs=3, hidden_size=5, layers=2, truncation=2, probe="steps",
        reset=True, estimator=(4,),
    ),
    "bfloat16": dict(steps=4, batch=2, inputs=3, hidden_size=4, truncation=2, dtype=torch.bfloat16),
    "gated units": dict(
        steps=5, batch=2, inputs=3, hidden_size=5, layers=2, truncation=2, probe="steps",
        reset=True, estimator=(4,), cell="GRU",
    ),
    "gated units in bfloat16": dict(
        steps=4, batch=2, inputs=3, hidden_size=4, truncation=2, dtype=torch.bfloat16, cell="GRU"
    ),
    "a plain layer": dict(
        steps=5, batch=2, inputs=3, hidden_size=5, truncation=2, probe="chunks", cell="RNN_TANH"
    ),
}  # fmt: skip


@needs_op
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name, requires_grad):
    call = make_call(**CALLS[name])
    for tensor in call.wanted:
        tensor.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.dnirnn.tbptt.default, call.arguments)


@needs_op
@pytest.mark.parametrize("name", CALLS)
def test_shapes_and_dtypes_are_known_without_running(name):
    """On meta tensors: what tracing sees is what comes."""
    call = make_call(**CALLS[name])

    def on_meta(value):
        if isinstance(value, list):
            return [on_meta(part) for part in value]
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    found = torch.ops.dnirnn.tbptt(*(on_meta(argument) for argument in call.arguments))
    expected = torch.ops.dnirnn.tbptt(*call.arguments)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]


def run(core, x, state, t0, reset, forward):
    leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
    output, ended = forward(*leaves, t0, reset)
    loss = output.square().sum() + ended.sum()
    return [output, ended, *torch.autograd.grad(loss, [*leaves, *core.parameters()])]


@pytest.mark.parametrize("with_reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: LSTM(3, 4, 2),
        lambda: Clock(3, 4),
        lambda: Leaky(3, 4),
        lambda: GRU(3, 4, 2),
        lambda: RNN(3, 4),
        lambda: Clockwork(3, 4, (1, 2)),
        lambda: Dilated(3, 4, [1, 2], "gru"),
    ],
)
def test_forward_compiles_whole(path, make, with_reset):
    core = make().double()
    x, state = torch.randn(4, 2, 3).double(), torch.randn(2, core.state_size).double()
    reset = torch.rand(4, 2) < 0.3 if with_reset else None
    torch._dynamo.reset()
    compiled = torch.compile(core.forward, fullgraph=True, backend="aot_eager")
    expected = run(core, x, state, 3, reset, core)
    assert_close(run(core, x, state, 3, reset, compiled), expected)


@needs_op
def test_one_compiled_graph_serves_other_sizes():
    """Lengths and batches other than the first: no size is burnt in."""
    core = LSTM(3, 4).double()
    torch._dynamo.reset()
    compiled = torch.compile(core.forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, batch in ((4, 2), (5, 3), (6, 4)):
        x, state = torch.randn(steps, batch, 3).double(), torch.randn(batch, 8).double()
        expected = run(core, x, state, 0, None, core)
        assert_close(run(core, x, state, 0, None, compiled), expected)


@needs_op
@pytest.mark.parametrize("make", [lambda: LSTM(3, 4), lambda: GRU(3, 4), lambda: RNN(3, 4)])
def test_a_second_length_is_the_last_that_is_compiled(make):
    core = make()
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(core, fullgraph=True, backend=count)
    for steps in range(4, 16):
        x, state = torch.randn(steps, 2, 3), core.initial_state(2)
        assert_close(compiled(x, state)[0], core(x, state)[0], 1e-6)
    assert len(graphs) <= 2


@needs_op
def test_compiles_with_the_default_backend():
    core = LSTM(3, 4).double()
    torch._dynamo.reset()
    x, state = torch.randn(4, 2, 3).double(), torch.randn(2, 8).double()
    expected = core(x, state)
    with torch.no_grad():
        assert_close(torch.compile(core, fullgraph=True)(x, state), expected)


@needs_op
@pytest.mark.parametrize("probe", ["none", "chunks", "steps"])
def test_the_operator_compiles_whole(probe):
    """All of its arguments, in a graph with other operations around it."""
    call = make_call(5, 2, 3, 4, 2, truncation=2, probe=probe, reset=True, estimator=(4,))

    def around(*arguments):
        output, sent, synthetic = ops.tbptt(*arguments)
        return output.tanh(), 2 * sent, synthetic + 1

    torch._dynamo.reset()
    results = []
    for function in (around, torch.compile(around, fullgraph=True, backend="aot_eager")):
        values = function(*call.arguments)
        loss = values[0].square().sum() + values[1].sum()
        results.append([*values, *torch.autograd.grad(loss, call.wanted)])
    assert_close(results[1], results[0])


def test_truncated_around_a_compiled_core(path):
    """Probes are made outside of the compiled region: one update is the same."""
    core = LSTM(3, 4)
    estimator = SyntheticGradient(core.state_size)
    torch.nn.init.normal_(estimator.layers[0].weight)
    truncated = Truncated(core, 2, estimator)
    x, state = torch.randn(5, 2, 3), core.initial_state(2)
    updates = []
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            core.forward = torch.compile(core.forward, backend="aot_eager")
        truncated.zero_grad()
        output, _, cuts = truncated(x, state)
        result = backward(output.square().sum(), cuts)
        gradients = [parameter.grad.clone() for parameter in truncated.parameters()]
        updates.append([output, *gradients, result["estimator_error"]])
    assert_close(updates[1], updates[0], 1e-6)


@pytest.mark.parametrize("make", [lambda: LSTM(3, 4), lambda: Clock(3, 4)])
def test_plain_truncation_compiles_whole(path, make):
    torch._dynamo.reset()
    core = make().double()
    truncated = Truncated(core, 2, ZeroGradient())
    x, state = torch.randn(5, 2, 3).double(), torch.randn(2, core.state_size).double()
    found = []
    for run in (truncated, torch.compile(truncated, fullgraph=True, backend="aot_eager")):
        output, ended, cuts = run(x, state, 0)
        backward(output.square().sum(), cuts)
        found.append([output, ended, *(p.grad for p in core.parameters())])
        core.zero_grad()
    assert_close(found[1], found[0])


def test_with_an_estimator_the_core_is_what_is_compiled():
    torch._dynamo.reset()
    x, state = torch.randn(5, 2, 3), torch.zeros(2, 4)
    truncated = Truncated(Clock(3, 4), 2, SyntheticGradient(4))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"truncated\.compile\(fullgraph=True\)"):
        torch.compile(truncated, fullgraph=True, backend="aot_eager")(x, state, 0)
    expected = truncated(x, state, 0)[0]
    torch._dynamo.reset()
    assert_close(torch.compile(truncated, backend="aot_eager")(x, state, 0)[0], expected, 1e-6)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    truncated.compile(fullgraph=True, backend=count)
    output, _, cuts = truncated(x, state, 0)
    assert graphs
    assert_close(output, expected, 1e-6)
    assert backward(output.square().sum(), cuts)["estimator_error"] > 0


@needs_op
@pytest.mark.parametrize("probe", ["none", "chunks"])
def test_autocast_casts_x_and_rounds_the_weights(probe):
    call = make_call(
        9, 4, 16, 32, 2, truncation=4, probe=probe, estimator=(8,), dtype=torch.float32
    )
    expected = ops.tbptt(*call.arguments)
    wanted = torch.autograd.grad(
        expected[:2], call.wanted, [call.by_output, call.by_sent]
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.tbptt(*call.arguments)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32, torch.float32]
    gradients = torch.autograd.grad(
        found[:2], call.wanted, [call.by_output.bfloat16(), call.by_sent]
    )
    for one, other in zip((*found, *gradients), (*expected, *wanted)):
        assert_close(one, other, 2e-2)
    assert all(g.dtype == torch.float32 for g in gradients)


def test_a_whole_update_under_autocast(path):
    core = LSTM(16, 32)
    estimator = SyntheticGradient(core.state_size, (8,))
    torch.nn.init.normal_(estimator.layers[-1].weight, std=0.1)
    truncated = Truncated(core, 3, estimator)
    x, state = torch.randn(8, 4, 16), core.initial_state(4)
    updates = []
    for enabled in (False, True):
        truncated.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, ended, cuts = truncated(x, state)
            loss = output.float().square().sum()
        backward(loss, cuts)
        (cut,) = cuts
        held = [ended, cut.end, cut.synthetic, cut.start, cut.probe, cut.probe.grad]
        assert [tensor.dtype for tensor in held] == 6 * [torch.float32]
        gradients = [parameter.grad.clone() for parameter in truncated.parameters()]
        assert all(g.dtype == torch.float32 for g in gradients)
        updates.append([output, cut.synthetic, cut.probe.grad, *gradients])
    for one, other in zip(updates[1], updates[0]):
        assert_close(one, other, 3e-2)
