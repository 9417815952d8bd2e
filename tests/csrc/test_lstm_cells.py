"""The operator of LSTM cells that follow each other within a step, against its loop in torch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds
from torch.nn import functional as F

from dnirnn import HMLSTM, ops
from dnirnn.cells.chain import READS_X, Link, lstm_cells
from dnirnn.stacks.skip import Round

pytestmark = pytest.mark.skipif(
    not ops.built, reason="the fused operators are not built here (dnirnn.ops.built is False)"
)

D = torch.float64
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 1e-2}


def cell(link, inputs, h, c, t, masks):
    """(h', c') of one cell, masks [T, B, width] by (link, place)."""
    w_hh, *inward, bias = link.weights
    a = F.linear(h.to(w_hh.dtype), w_hh)
    for value, weight in zip(inputs, inward):
        a = a + F.linear(value.to(weight.dtype), weight)
    size = h.shape[1]
    a = a.to(c.dtype).view(-1, 4, size)
    if link.norm:
        a = F.layer_norm(a, (size,)) * link.norm[0].view(4, size)
    i, f, g, o = (a + bias.to(c.dtype).view(4, size)).unbind(1)
    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    inner = new_c
    if link.norm:
        inner = F.layer_norm(new_c, (size,)) * link.norm[1] + link.norm[2]
    new_h = o.sigmoid() * inner.tanh()
    if link.open_h is not None:
        new_h = h + masks(link.open_h, size)[t] * (new_h - h)
    if link.open_c is not None:
        new_c = c + masks(link.open_c, size)[t] * (new_c - c)
    return new_h, new_c


def loop(x, state, probe, links, truncation, *, skip=(), reset=None):
    """(output, sent) of lstm_cells, a step and a cell at a time."""
    steps, batch, _ = x.shape
    units = {link.part: link.weights[0].shape[1] for link in links}
    sizes = [size for part in range(len(units)) for size in (units[part], units[part])]
    top = units[links[-1].part]
    initial = torch.zeros_like(state)
    if skip:
        sizes += [top, 1]
        initial[:, -1] = 1

    def masks(mask, width):
        return mask.expand(steps, batch, width)

    outputs, sent = [], []
    for t in range(steps):
        if t % truncation == 0:
            state = state.detach() if t else state
            state = state if probe is None else state + probe[t // truncation]
        if reset is not None:
            state = torch.where(reset[t, :, None], initial, state)
        parts = list(state.split(sizes, 1))
        for link in links:
            inputs = [x[t] if part == READS_X else parts[2 * part] for part in link.reads]
            for j, mask in enumerate(link.masks):
                if mask is not None:
                    inputs[j] = inputs[j] * masks(mask, inputs[j].shape[1])[t]
            at = 2 * link.part
            parts[at : at + 2] = cell(link, inputs, *parts[at : at + 2], t, masks)
        said = parts[2 * links[-1].part]
        if skip:
            (w, b), held, soft = skip, parts[-2], parts[-1]
            u = Round.apply(soft)
            core = torch.lerp(state[:, : w.shape[1]], torch.cat(parts[:-2], 1), u)
            held = torch.lerp(held, said, u)
            grown = torch.sigmoid(F.linear(core, w, b))
            soft = torch.lerp(soft + torch.minimum(grown, 1 - soft), grown, u)
            state, said = torch.cat([core, held, soft], 1), torch.cat([held, u], 1)
        else:
            state = torch.cat(parts, 1)
        outputs.append(said)
        if (t + 1) % truncation == 0 or t + 1 == steps:
            sent.append(state)
    return torch.stack(outputs).to(x.dtype), torch.stack(sent)


@st.composite
def calls(draw, most=(9, 9, 20, 30)):
    """Sizes, and of each cell its part and what it reads."""
    steps, batch, inputs, units = (draw(st.integers(1, size)) for size in most)
    count = draw(st.integers(1, 4))
    cells, parts = [], 0
    for _ in range(count):
        part = draw(st.integers(0, parts))
        parts = max(parts, part + 1)
        cells.append((part, draw(st.lists(st.integers(-1, count - 1), max_size=3, unique=True))))
    cells = [(part, [read for read in reads if read < parts]) for part, reads in cells]
    return dict(
        sizes=(steps, batch, inputs),
        units=[max(1, units - 7 * part) for part in range(parts)],
        cells=cells,
        truncation=draw(st.integers(1, steps + 1)),
        norm=draw(st.booleans()),
        masked=draw(st.booleans()),
        skip=draw(st.booleans()),
        probe=draw(st.booleans()),
        reset=draw(st.booleans()),
        seed=draw(seeds),
    )


def tensors(sizes, units, cells, truncation, norm, masked, skip, probe, reset, seed, dtype):
    """(positional arguments, keywords, leaves) of one call."""
    steps, batch, inputs = sizes
    torch.manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    found = []

    def normal(*shape, scale=1.0, dtype=wide):
        found.append((scale * torch.randn(*shape)).to(dtype).requires_grad_())
        return found[-1]

    def mask(width):
        shape = [size if torch.rand(()) < 0.5 else 1 for size in (steps, batch, width)]
        return torch.rand(shape).to(wide) if masked and torch.rand(()) < 0.7 else None

    links = []
    for part, reads in cells:
        size = units[part]
        widths = [inputs if read == READS_X else units[read] for read in reads]
        weights = [normal(4 * size, w, scale=w**-0.5, dtype=dtype) for w in (size, *widths)]
        weights.append(normal(4 * size, dtype=dtype))
        vectors = [normal(4 * size), normal(size), normal(size)] if norm else []
        masks = [mask(width) for width in widths]
        links.append(Link(part, reads, weights, vectors, mask(size), mask(size), masks))
    of_cells = 2 * sum(units)
    keywords = {}
    if skip:
        keywords["skip"] = [normal(1, of_cells, scale=of_cells**-0.5), normal(1)]
    if reset:
        keywords["reset"] = torch.rand(steps, batch) < 0.3
    size = of_cells + (units[cells[-1][0]] + 1 if skip else 0)
    state = 0.5 * torch.randn(batch, size).to(wide)
    if skip:
        state[:, -1] = torch.rand(batch)
    found.append(state.requires_grad_())
    chunks = -(-steps // min(truncation, steps))
    # Small: of the parts of u~ too, which must not pass a half for it.
    of_probe = normal(chunks, batch, size, scale=1e-3) if probe else None
    x = normal(*sizes, dtype=dtype)
    return (x, state, of_probe, links, truncation), keywords, found


def run(function, positional, keywords, leaves, seed=0):
    output, sent = function(*positional, **keywords)
    torch.manual_seed(seed)
    grads = [torch.randn(part.shape).bfloat16().to(part.dtype) for part in (output, sent)]
    found = torch.autograd.grad([output, sent], leaves, grads, materialize_grads=True)
    return output, sent, found


def compare(dtype, **call):
    """With the loop in dtype; of bfloat16, in float32 on the same numbers: so the operator computes."""
    positional, keywords, leaves = tensors(**call, dtype=dtype)
    found = run(lstm_cells, positional, keywords, leaves)
    assert found[0].dtype == dtype and found[1].dtype == positional[1].dtype
    if dtype == torch.bfloat16:
        wide = {id(leaf): leaf.detach().float().requires_grad_() for leaf in leaves}
        x, state, probe, links, truncation = positional
        links = [one._replace(**{k: [wide[id(w)] for w in getattr(one, k)] for k in ("weights", "norm")})
                 for one in links]  # fmt: skip
        probe = None if probe is None else wide[id(probe)]
        positional = (wide[id(x)], wide[id(state)], probe, links, truncation)
        keywords = keywords | {"skip": [wide[id(w)] for w in keywords.get("skip", [])]}
        leaves = [wide[id(leaf)] for leaf in leaves]
    expected = run(loop, positional, keywords, leaves)
    for one, other in zip([*found[:2], *found[2]], [*expected[:2], *expected[2]], strict=True):
        assert_close(one, other, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(call=calls())
def test_equals_the_loop(dtype, call):
    if dtype != torch.float64:
        # A normalisation of one or two units is a sign, and rounding may turn a u.
        call["units"] = [max(size, 16) for size in call["units"]]
        call["skip"] = False
    compare(dtype, **call)


MANY = dict(
    cells=[(0, [READS_X]), (1, [0]), (0, [1])],
    truncation=7,
    norm=True,
    masked=True,
    probe=True,
    reset=True,
    seed=3,
)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("sizes", [[20, 33, 70, 150], [150, 9, 3, 17], [3, 1, 130, 260]])
def test_equals_the_loop_where_blocks_and_threads_are_many(sizes, threads, skip):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        units = [sizes[3], sizes[3] // 2]
        compare(torch.float64, sizes=sizes[:3], units=units, skip=skip, **MANY)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("skip", [False, True])
def test_is_the_same_to_the_last_bit_in_a_second_call_and_without_a_graph(skip):
    call = dict(sizes=[12, 32, 40], units=[64, 48], skip=skip, **MANY)
    positional, keywords, leaves = tensors(**call, dtype=torch.float32)
    first, second = (run(lstm_cells, positional, keywords, leaves) for _ in range(2))
    for one, other in zip([*first[:2], *first[2]], [*second[:2], *second[2]]):
        assert torch.equal(one, other)
    with torch.no_grad():
        for one, other in zip(lstm_cells(*positional, **keywords), first):
            assert torch.equal(one, other)


@given(call=calls())
def test_a_cell_that_reads_x_is_gated_lstm(call):
    call.update(cells=[(0, [READS_X])], skip=False, units=call["units"][:1])
    positional, keywords, leaves = tensors(**call, dtype=torch.float64)
    x, state, probe, ((_, _, weights, norm, open_h, open_c, (mask,)),), truncation = positional
    w_hh, w_ih, bias = weights
    gates = {"open_h": open_h, "open_c": open_c}
    expected = ops.gated_lstm(
        x if mask is None else x * mask, state, probe, [w_ih, w_hh, bias, torch.zeros_like(bias)],
        truncation, norm=norm, reset=keywords.get("reset"), **gates,
    )  # fmt: skip
    assert_close(list(lstm_cells(*positional, **keywords)), list(expected))


def small(skip=False, truncation=4, seed=5):
    call = dict(sizes=[4, 2, 2], units=[3, 2], skip=skip, **MANY)
    return tensors(**(call | dict(truncation=truncation, seed=seed)), dtype=torch.float64)


def test_gradients_are_finite_differences():
    positional, keywords, leaves = small()

    def call(*values):
        return lstm_cells(*positional, **keywords)

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("truncation", [2, 3, 4])
def test_opcheck(truncation, skip):
    (x, state, probe, links, _), keywords, _ = small(skip, truncation)
    weights = [weight for link in links for weight in link.weights]
    norm = [vector for link in links for vector in link.norm]
    none = state.new_empty(0)
    masks = [
        none if mask is None else mask
        for link in links
        for mask in (link.open_h, link.open_c, *link.masks)
    ]
    cells = [0, 1, -1, 1, 1, 0, 0, 1, 1]
    skipped = keywords.get("skip", [])
    call = [x, state, probe, cells, weights, norm, masks, skipped, None, truncation]
    torch.library.opcheck(torch.ops.dnirnn.lstm_cells.default, (*call, keywords["reset"], True))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_opcheck_with_detectors(layer_norm):
    core = HMLSTM(2, 3, 2, layer_norm=layer_norm).double()
    names = ["weight_hh_l0", "weight_ih_l0", "weight_top_l0", "bias_l0"]
    names += ["weight_hh_l1", "weight_ih_l1", "bias_l1"]
    vectors = ["gain_l0", "shift_l0", "gain_l1", "shift_l1"] if layer_norm else []
    weights, norm = ([getattr(core, name) for name in part] for part in (names, vectors))
    x, state = torch.randn(4, 2, 2, dtype=D), torch.randn(2, 13, dtype=D)
    cells, reset = [0, 2, -1, 1, 1, 1, 0], torch.rand(4, 2) < 0.3
    call = [x, state, None, cells, weights, norm, [], [], core.slope, 3, reset, True]
    torch.library.opcheck(torch.ops.dnirnn.lstm_cells.default, tuple(call))


def test_has_no_second_derivative():
    positional, keywords, _ = small()
    output, _ = lstm_cells(*positional, **keywords)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(output.sum(), positional[0], create_graph=True)


def link(**change):
    one = small()[0][3][0]
    return one._replace(**change)



@pytest.mark.parametrize(
    ("links", "keywords", "error", "named"),
    [
        ([], {}, ValueError, "cells must be at least one"),
        ([link(part=1)], {}, ValueError, "parts of cells must come up in order"),
        ([link(reads=[3])], {}, ValueError, "cells must read parts of the state, or x as -1"),
        ([link(weights=[torch.ones(12, 3, dtype=D)] * 2)], {}, ValueError, "weights must be w_hh"),
        (
            [link(weights=[torch.ones(12, 3, dtype=D)] * 2 + [torch.ones(12, dtype=D)])],
            {},
            ValueError,
            r"weights\[1\] must be \[12, 2\]; got \[12, 3\]",
        ),
        (
            [link(weights=[w.float() for w in link().weights])],
            {},
            TypeError,
            r"weights\[0\] is Float, x is Double",
        ),
        ([link(norm=[torch.ones(12, dtype=D)])], {}, ValueError, "norm must be gain, gain_c, bias_c"),
        ([link(norm=[torch.ones(3, dtype=D)] * 3)], {}, ValueError, r"norm\[0\] must be \[12\]"),
        ([link(open_h=torch.ones(5, 1, 1, dtype=D))], {}, ValueError, r"masks\[0\] must be \[4 or 1"),
        ([link(open_c=torch.ones(1, 1, 1))], {}, TypeError, r"masks\[1\] must be Double"),
        (
            [link(masks=[torch.ones(1, 1, 1, dtype=D, requires_grad=True)])],
            {},
            ValueError,
            "masks must not require a gradient",
        ),
        ([link()], dict(skip=[torch.ones(1, 6, dtype=D)]), ValueError, "skip must be w and b"),
        (
            [link()],
            dict(skip=[torch.ones(1, 5, dtype=D), torch.ones(1, dtype=D)]),
            ValueError,
            r"skip\[0\] \(w\) must be \[1, 6\]",
        ),
        (
            [link(norm=(), masks=(), open_h=None, open_c=None)],
            dict(slope=torch.ones(1, dtype=D)),
            ValueError,
            r"slope must be \[\]",
        ),
        (
            [link(norm=(), masks=[torch.ones(1, 1, 1, dtype=D)])],
            dict(slope=torch.ones((), dtype=D)),
            ValueError,
            "slope goes without skip and masks",
        ),
        (
            [link(), link()],
            dict(slope=torch.ones((), dtype=D)),
            ValueError,
            r"weights\[0\] must be \[13, 3\]; got \[12, 3\]",
        ),
        ([link()], dict(reset=torch.zeros(4, 1, dtype=torch.bool)), ValueError, "reset must be"),
    ],
)
def test_says_what_does_not_fit(links, keywords, error, named):
    (x, state, *_), _, _ = small()
    with pytest.raises(error, match=named):
        lstm_cells(x, state[:, :6], None, links, 4, **keywords)
