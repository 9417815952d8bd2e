"""FastSlow: the paper's loop, cell by cell; the same masks wherever it is cut; published sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_reset, any_t0, assert_close, problems, seeds

from dnirnn import FastSlow, draw_masks
from dnirnn.core import advance

REGULARISED = dict(zoneout_h=0.3, zoneout_c=0.5, dropout=0.4)


def normalised(a):
    centred = a - a.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def cell(part, x, h, c, t, training):
    """One LSTM cell with layer normalisation and zoneout; x is None where it takes no input."""
    size, batch = h.shape[1], len(h)
    said = []
    for k in range(4):
        rows = slice(k * size, (k + 1) * size)
        a = h @ part.weight_hh_l0[rows].T
        if x is not None:
            a = a + x @ part.weight_ih_l0[rows].T
        if part.layer_norm:
            a = part.gain_l0[rows] * normalised(a)
        said.append(a + part.bias_ih_l0[rows] + part.bias_hh_l0[rows])
    i, f, g, o = said
    new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    squashed = new_c
    if part.layer_norm:
        squashed = part.gain_c_l0 * normalised(new_c) + part.bias_c_l0
    new_h = torch.sigmoid(o) * torch.tanh(squashed)
    mixed = []
    for name, old, new in (("zoneout_h", h, new_h), ("zoneout_c", c, new_c)):
        share = torch.full_like(new, part.drops[name])
        if training and part.drops[name]:
            share = 1 - part.masks[name](batch, t)[0].double()
        mixed.append(share * old + (1 - share) * new)
    return mixed


def paper(core, x, state, t0, training):
    """Section 3: (outputs, state)."""
    sizes = [core.fast_size, core.fast_size, core.slow_size, core.slow_size]
    h, c, h_slow, c_slow = state.split(sizes, 1)
    batch, outputs = len(state), []

    def dropped(name, value, t):
        if not training or not core.dropout:
            return value
        return value * core.masks[name](batch, t)[0] / (1 - core.dropout)

    for i, x_t in enumerate(x):
        t = t0 + i
        h, c = cell(core.fast[0], dropped("x", x_t, t), h, c, t, training)
        h_slow, c_slow = cell(core.slow, dropped("fast", h, t), h_slow, c_slow, t, training)
        h, c = cell(core.fast[1], dropped("slow", h_slow, t), h, c, t, training)
        for further in core.fast[2:]:
            h, c = cell(further, None, h, c, t, training)
        outputs.append(dropped("output", h, t))
    return torch.stack(outputs), torch.cat([h, c, h_slow, c_slow], 1)


@pytest.mark.parametrize("fast_cells", [2, 3, 4])
@given(
    steps=st.integers(1, 6),
    batch=st.integers(1, 3),
    fast=st.integers(1, 4),
    slow=st.integers(1, 4),
    t0=st.integers(0, 20),
    layer_norm=st.booleans(),
    options=st.sampled_from([{}, REGULARISED]),
    training=st.booleans(),
    seed=seeds,
)
def test_equals_the_papers_loop(
    fast_cells, steps, batch, fast, slow, t0, layer_norm, options, training, seed
):
    torch.manual_seed(seed)
    core = FastSlow(2, fast, slow, fast_cells, layer_norm=layer_norm, **options)
    core = core.double().train(training)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(steps, batch, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(batch, core.state_size, dtype=torch.float64, requires_grad=True)
    outputs, end = paper(core, x, state, t0, training)
    output, last = core(x, state, t0)
    assert_close(output, outputs)
    assert_close(last, end)
    y, z = torch.randn_like(outputs), torch.randn_like(end)
    wanted = [x, state, *core.parameters()]
    expected = torch.autograd.grad((outputs * y).sum() + (end * z).sum(), wanted)
    found = torch.autograd.grad((output * y).sum() + (last * z).sum(), wanted)
    assert_close(found, expected)


@given(problem=problems(t0=any_t0, reset=any_reset), where=st.floats(0, 1))
def test_no_cut_changes_a_mask(problem, where):
    torch.manual_seed(problem.seed)
    core = FastSlow(problem.input_size, problem.hidden_size, 2, 3, **REGULARISED).double()
    case = problem.case(core)
    whole, state = core(case.x, case.state, case.t0, case.reset)
    split = int(where * problem.steps)
    resets = (None, None) if case.reset is None else (case.reset[:split], case.reset[split:])
    parts, end = [], case.state
    for begin, x, reset in ((0, case.x[:split], resets[0]), (split, case.x[split:], resets[1])):
        if len(x):
            part, end = core(x, end, advance(case.t0, case.reset, begin), reset)
            parts.append(part)
    assert_close(torch.cat(parts), whole)
    assert_close(end, state)


def test_every_mask_is_its_own():
    """Two masks of one seed would strike the same units of two cells at once."""
    core = FastSlow(4, 4, 4, 3, **REGULARISED)
    masks = [part for part in core.modules() if hasattr(part, "seed")]
    assert len(masks) == 4 + 2 * 4 and len({int(part.seed) for part in masks}) == len(masks)
    x, state = torch.randn(5, 2, 4), core.initial_state(2)
    before = core(x, state)[0]
    draw_masks(core)
    assert not torch.equal(core(x, state)[0], before)
    core.eval()
    assert torch.equal(core(x, state)[0], core(x, state)[0])


@pytest.mark.parametrize(
    ("sizes", "millions"), [((128, 700, 400, 2), 7.2), ((128, 500, 400, 4), 6.5)], ids=str
)
def test_penn_treebank_models_have_the_published_size(sizes, millions):
    """With an embedding and a softmax of 50 characters: cells past the second take no input."""
    options = dict(zoneout_h=0.1, zoneout_c=0.5, dropout=0.35)
    core = FastSlow(*sizes, **options, device="meta")
    count = sum(p.numel() for p in core.parameters()) + 50 * sizes[0] + 50 * (sizes[1] + 1)
    assert abs(count / 1e6 - millions) < 0.1


def test_the_penn_treebank_model_runs_and_learns():
    core = FastSlow(128, 700, 400, 2, zoneout_h=0.1, zoneout_c=0.5, dropout=0.35)
    output, state = core(torch.randn(2, 2, 128), core.initial_state(2))
    assert output.shape == (2, 2, 700) and state.shape == (2, 2200)
    output.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in core.parameters())


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_keeps_a_float32_state(autocast):
    core = FastSlow(3, 4, 5, 3, dropout=0.2)
    core = core if autocast else core.bfloat16()
    x = torch.randn(5, 2, 3, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, last = core(x, core.initial_state(2))
    assert last.dtype == torch.float32 and output.dtype == x.dtype


@pytest.mark.parametrize(
    ("sizes", "options", "named"),
    [
        ((0, 3, 3), {}, "input_size must be an int of at least 1; got 0"),
        ((3, 0, 3), {}, "fast_size must be an int of at least 1; got 0"),
        ((3, 3, 0), {}, "slow_size must be an int of at least 1; got 0"),
        ((3, 3, 3, 1), {}, "fast_cells must be an int of at least 2; got 1"),
        ((3, 3, 3), {"dropout": 1.0}, "dropout must be a probability"),
        ((3, 3, 3), {"zoneout_h": -0.1}, "zoneout_h must be a probability"),
    ],
)
def test_what_does_not_fit_is_named(sizes, options, named):
    with pytest.raises(ValueError, match=named):
        FastSlow(*sizes, **options)
