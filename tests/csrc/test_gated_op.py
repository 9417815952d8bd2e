"""The operator of an LSTM layer with gates and layer normalisation, against its loop in torch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_calls import needs_op
from strategies import assert_close, seeds
from torch.nn import functional as F

from dnirnn import NormLSTM, PhasedLSTM, ops

pytestmark = needs_op

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2}
GATES = ("open_h", "open_c", "factor")


def loop(x, state, probe, weights, truncation, norm=None, reset=None, **gates):
    """(output, sent) of ops.gated_lstm, a step at a time."""
    steps, batch, _ = x.shape
    w_ih, w_hh, b_ih, b_hh = weights
    hidden = w_hh.shape[1]
    gates = {name: gate.expand(steps, batch, hidden) for name, gate in gates.items()}
    outputs, sent = [], []
    for t in range(steps):
        if t % truncation == 0:
            state = state.detach() if t else state
            state = state if probe is None else state + probe[t // truncation]
        if reset is not None:
            state = state.masked_fill(reset[t, :, None], 0)
        h, c = state.chunk(2, 1)
        a = F.linear(x[t], w_ih) + F.linear(h.to(x.dtype), w_hh)
        a = a.to(c.dtype).view(batch, 4, hidden)
        if norm:
            a = F.layer_norm(a, (hidden,)) * norm[0].view(4, hidden)
        i, f, g, o = (a + (b_ih + b_hh).to(c.dtype).view(4, hidden)).unbind(1)
        g = g.tanh() * gates["factor"][t] if "factor" in gates else g.tanh()
        new_c = f.sigmoid() * c + i.sigmoid() * g
        inner = F.layer_norm(new_c, (hidden,)) * norm[1] + norm[2] if norm else new_c
        new_h = o.sigmoid() * inner.tanh()
        if "open_h" in gates:
            new_h = gates["open_h"][t] * new_h + (1 - gates["open_h"][t]) * h
        if "open_c" in gates:
            new_c = gates["open_c"][t] * new_c + (1 - gates["open_c"][t]) * c
        state = torch.cat([new_h, new_c], 1)
        outputs.append(new_h)
        if (t + 1) % truncation == 0 or t + 1 == steps:
            sent.append(state)
    return torch.stack(outputs).to(x.dtype), torch.stack(sent)


@st.composite
def calls(draw, most=(9, 9, 20, 40)):
    sizes = [draw(st.integers(1, size)) for size in most]
    shapes = {
        name: [size if draw(st.booleans()) else 1 for size in (sizes[0], sizes[1], sizes[3])]
        for name in GATES
        if draw(st.booleans())
    }
    return dict(
        sizes=sizes,
        truncation=draw(st.integers(1, sizes[0] + 1)),
        shapes=shapes,
        norm=draw(st.booleans()),
        probe=draw(st.booleans()),
        reset=draw(st.booleans()),
        seed=draw(seeds),
    )


def tensors(sizes, truncation, shapes, norm, probe, reset, seed, dtype):
    """(positional arguments, keywords) of one call; everything but the factor wants a gradient."""
    steps, batch, inputs, hidden = sizes
    torch.manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape, scale=1.0, dtype=wide):
        return (scale * torch.randn(*shape)).to(dtype).requires_grad_()

    chunks = -(-steps // min(truncation, steps))
    weights = [
        normal(4 * hidden, inputs, scale=inputs**-0.5, dtype=dtype),
        normal(4 * hidden, hidden, scale=hidden**-0.5, dtype=dtype),
        normal(4 * hidden, dtype=dtype),
        normal(4 * hidden, dtype=dtype),
    ]
    keywords = {
        name: torch.rand(shape).to(wide).requires_grad_(name != "factor")
        for name, shape in shapes.items()
    }
    if norm:
        keywords["norm"] = [normal(4 * hidden), normal(hidden), normal(hidden)]
    if reset:
        keywords["reset"] = torch.rand(steps, batch) < 0.3
    state = normal(batch, 2 * hidden, scale=0.5)
    of_probe = normal(chunks, batch, 2 * hidden, scale=0.1) if probe else None
    return (normal(*sizes[:3], dtype=dtype), state, of_probe, weights, truncation), keywords


def leaves(positional, keywords):
    x, state, probe, weights, _ = positional
    found = [x, state, *([] if probe is None else [probe]), *weights]
    return [*found, *keywords.get("norm", []), *(keywords[n] for n in GATES[:2] if n in keywords)]


def run(function, positional, keywords, seed=0):
    output, sent = function(*positional, **keywords)
    torch.manual_seed(seed)
    grads = [torch.randn(output.shape).to(output.dtype), torch.randn(sent.shape).to(sent.dtype)]
    return output, sent, torch.autograd.grad([output, sent], leaves(positional, keywords), grads)


def compare(dtype, **call):
    positional, keywords = tensors(**call, dtype=dtype)
    found = run(ops.gated_lstm, positional, keywords)
    expected = run(loop, positional, keywords)
    assert (found[0].dtype, found[1].dtype) == (expected[0].dtype, expected[1].dtype)
    for one, other in zip(found, expected):
        assert_close(one, other, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(call=calls())
def test_equals_the_loop(dtype, call):
    # A normalisation of one or two units is a sign: without a derivative that rounding leaves alone.
    if dtype != torch.float64:
        call["sizes"][3] = max(call["sizes"][3], 16)
        for shape in call["shapes"].values():
            shape[2] = 1
    compare(dtype, **call)


MANY = dict(truncation=7, norm=True, probe=True, reset=True, seed=3)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[20, 33, 70, 150], [300, 9, 3, 17], [3, 1, 130, 260]])
def test_equals_the_loop_where_blocks_and_threads_are_many(sizes, threads):
    shapes = {name: [sizes[0], sizes[1], sizes[3]] for name in GATES}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare(torch.float64, sizes=sizes, shapes=shapes, **MANY)
    finally:
        torch.set_num_threads(before)


def test_is_the_same_to_the_last_bit_in_a_second_call():
    sizes = [12, 32, 40, 64]
    shapes = {name: [sizes[0], sizes[1], sizes[3]] for name in GATES}
    positional, keywords = tensors(sizes=sizes, shapes=shapes, dtype=torch.float32, **MANY)
    first, second = (run(ops.gated_lstm, positional, keywords) for _ in range(2))
    for one, other in zip([*first[:2], *first[2]], [*second[:2], *second[2]]):
        assert torch.equal(one, other)


@given(call=calls())
def test_all_open_is_the_lstm(call):
    call.update(norm=False, shapes={})
    positional, keywords = tensors(**call, dtype=torch.float64)
    expected = run(ops.gated_lstm, positional, keywords)
    x, state, probe, weights, truncation = positional
    output, sent, _ = ops.tbptt(
        x, state, probe, weights, [], truncation, 1.0, keywords.get("reset")
    )
    ones = torch.ones(1, 1, 1, dtype=torch.float64)
    opened = {name: ones.clone().requires_grad_(name != "factor") for name in GATES}
    found = run(ops.gated_lstm, positional, keywords | opened)
    assert_close(list(found[:2]), [output, sent])
    assert_close(list(found[2][: len(expected[2])]), list(expected[2]))


@given(call=calls())
def test_all_shut_keeps_the_state_and_sends_the_weights_nothing(call):
    call.update(shapes={}, reset=False, probe=False)
    positional, keywords = tensors(**call, dtype=torch.float64)
    shut = {name: torch.zeros(1, 1, 1, dtype=torch.float64) for name in GATES[:2]}
    output, sent = ops.gated_lstm(*positional, **keywords, **shut)
    state = positional[1]
    assert torch.equal(sent, state.expand_as(sent))
    assert torch.equal(output, state[:, : output.shape[2]].expand_as(output))
    weights = [*positional[3], *keywords.get("norm", [])]
    for gradient in torch.autograd.grad(output.sum() + sent.sum(), weights):
        assert not gradient.any()


def small(norm=True, truncation=4):
    shapes = {"open_h": [4, 1, 3], "open_c": [1, 2, 1], "factor": [4, 2, 3]}
    return tensors([4, 2, 2, 3], truncation, shapes, norm, True, True, 5, torch.float64)


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_are_finite_differences(norm):
    positional, keywords = small(norm)
    x, state, probe, weights, truncation = positional
    rest = {name: keywords[name] for name in ("factor", "reset")}

    def call(x, state, probe, open_h, open_c, *vectors):
        gates = dict(open_h=open_h, open_c=open_c, norm=list(vectors[4:]))
        return ops.gated_lstm(x, state, probe, list(vectors[:4]), truncation, **gates, **rest)

    inputs = [x, state, probe, keywords["open_h"], keywords["open_c"], *weights]
    assert torch.autograd.gradcheck(call, [*inputs, *keywords.get("norm", [])])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("truncation", [2, 3, 4])
def test_opcheck(norm, truncation):
    shapes = {"open_h": [4, 1, 3], "open_c": [1, 2, 1], "factor": [4, 2, 3]}
    positional, keywords = tensors(
        [4, 2, 2, 3], truncation, shapes, norm, True, True, 5, torch.float64
    )
    x, state, probe, weights, _ = positional
    gates = [keywords[name] for name in GATES]
    call = [x, state, probe, weights, keywords.get("norm", []), *gates, truncation]
    torch.library.opcheck(torch.ops.dnirnn.gated_lstm.default, (*call, keywords["reset"]))


@pytest.mark.parametrize("build", [NormLSTM, PhasedLSTM])
def test_cores_compile_whole(build):
    torch.manual_seed(0)
    core = build(3, 8)
    x, state = torch.randn(5, 2, 3), core.initial_state(2)
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    assert_close(list(compiled(x, state, 0)), list(core(x, state, 0)), 1e-6)


def test_has_no_second_derivative():
    positional, keywords = small()
    output, _ = ops.gated_lstm(*positional, **keywords)
    with pytest.raises(RuntimeError, match="second derivative"):
        (gradient,) = torch.autograd.grad(output.sum(), positional[0], create_graph=True)
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (dict(open_h=torch.ones(5, 1, 1).double()), ValueError, r"open_h must be \[4 or 1, .*5, 1"),
        (dict(open_c=torch.ones(1, 1).double()), ValueError, "open_c must be"),
        (dict(open_c=torch.ones(1, 1, 1)), TypeError, "open_c must be Double"),
        (dict(factor=torch.ones(1, 1, 2).double()), ValueError, "factor must be"),
        (
            dict(factor=torch.ones(1, 1, 1).double().requires_grad_()),
            ValueError,
            "factor must not require",
        ),
        (dict(norm=[torch.ones(12).double()]), ValueError, "norm must be gain, gain_c, bias_c"),
        (dict(norm=[torch.ones(3).double()] * 3), ValueError, r"norm\[0\] \(gain\) must be \[12\]"),
        (dict(reset=torch.zeros(4, 1, dtype=torch.bool)), ValueError, "reset must be"),
    ],
)
def test_says_what_does_not_fit(change, error, named):
    positional, keywords = small()
    with pytest.raises(error, match=named):
        ops.gated_lstm(*positional, **{**keywords, **change})


def test_says_that_it_has_one_layer_and_one_probe_a_chunk():
    (x, state, probe, weights, truncation), _ = small()
    with pytest.raises(ValueError, match="one layer"):
        ops.gated_lstm(x, state, None, [*weights, weights[1], *weights[1:]], truncation)
    with pytest.raises(ValueError, match=r"probe must be \[1 chunks"):
        ops.gated_lstm(x, state, probe.expand(4, -1, -1), weights, truncation)
