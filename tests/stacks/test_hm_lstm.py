"""HMLSTM against the paper's equations, row by row and case by case; its detectors; its slope."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, any_reset, assert_close, problems, seeds

from dnirnn import HMLSTM, SyntheticGradient, Truncated, backward


class Rounded(torch.autograd.Function):
    """The hard sigmoid of slope * s, rounded; back as if it had not been rounded."""

    @staticmethod
    def forward(ctx, s, slope):
        ctx.save_for_backward(s)
        ctx.slope = slope
        return torch.round(torch.clamp((slope * s + 1) / 2, 0, 1))

    @staticmethod
    def backward(ctx, gradient):
        (s,) = ctx.saved_tensors
        inside = (ctx.slope * s > -1) & (ctx.slope * s < 1)
        return gradient * inside * ctx.slope / 2, None


def gates_of(core, l, s):
    """(i, f, g, o) of layer l for the sums s [4 H] of one row."""
    parts = s.split(core.hidden_size)
    if core.layer_norm:
        parts = [(part - part.mean()) / spread(part) for part in parts]
        scaled = torch.cat(parts) * getattr(core, f"gain_l{l}") + getattr(core, f"shift_l{l}")
        parts = scaled.split(core.hidden_size)
    i, f, g, o = parts
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def spread(part):
    return torch.sqrt(((part - part.mean()) ** 2).mean() + 1e-5)


def branch(z, z_below, old, gates):
    """The paper's three cases, for z that are 0 or 1."""
    (h, c), (i, f, g, o) = old, gates
    if z == 1:
        c = i * g  # FLUSH
    elif z_below == 1:
        c = f * c + i * g  # UPDATE
    else:
        return h, c  # COPY
    return o * torch.tanh(c), c


def mixture(z, z_below, old, gates):
    """The same, linear in each z: what is differentiated. Any real z will do."""
    (h, c), (i, f, g, o) = old, gates
    cases = {
        (0, 0): c,
        (0, 1): f * c + i * g,
        (1, 0): i * g,
        (1, 1): i * g,
    }
    weights = ((1 - z, z), (1 - z_below, z_below))
    share = {(a, b): weights[0][a] * weights[1][b] for a, b in cases}
    mixed = sum(share[case] * cases[case] for case in cases)
    told = share[0, 1] + share[1, 0] + share[1, 1]
    return share[0, 0] * h + told * o * torch.tanh(mixed), mixed


def paper(core, x, state, cases, reset=None):
    """(outputs, states, detectors) of each step, one row and one layer at a time."""
    layers, size = core.num_layers, core.hidden_size
    rows = []
    for b in range(x.shape[1]):
        outputs, states, row = [], [], state[b]
        for i, x_I in enumerate(x[:, b]):
            if reset is not None and reset[i, b]:
                row = torch.zeros_like(row)
            old = [row[2 * l * size : 2 * (l + 1) * size].split(size) for l in range(layers)]
            z_old = [*row[2 * layers * size :].unbind(), torch.zeros(()).to(row)]
            below, z_below, new, z_new = x_I, torch.ones(()).to(row), [], []
            for l in range(layers):
                s = getattr(core, f"weight_hh_l{l}") @ old[l][0] + getattr(core, f"bias_l{l}")
                s = s + getattr(core, f"weight_ih_l{l}") @ below * z_below
                if l < layers - 1:
                    s = s + getattr(core, f"weight_top_l{l}") @ old[l + 1][0] * z_old[l]
                h, c = cases(z_old[l], z_below, old[l], gates_of(core, l, s[: 4 * size]))
                new += [h, c]
                if l < layers - 1:
                    z_new.append(Rounded.apply(s[4 * size], float(core.slope)))
                    below, z_below = h, z_new[-1]
            hs = new[::2]
            told = [torch.sigmoid(core.gates.weight[l] @ torch.cat(hs)) for l in range(layers)]
            parts = core.mix.weight.split(size, 1)
            outputs.append(torch.relu(sum(r * (E @ h) for r, E, h in zip(told, parts, hs))))
            row = torch.cat([*new, torch.stack(z_new)])
            states.append(row)
        rows.append((torch.stack(outputs), torch.stack(states)))
    outputs, states = (torch.stack(part, 1) for part in zip(*rows))
    return outputs, states, states[..., 2 * layers * size :]


def make(problem, layers, layer_norm, slope=1.0, output_size=None):
    """(core, case), the case's detectors 0 or 1."""
    torch.manual_seed(problem.seed)
    sizes = problem.input_size, problem.hidden_size, layers
    core = HMLSTM(*sizes, output_size=output_size, slope=slope, layer_norm=layer_norm).double()
    for parameter in core.parameters():  # wider than at the start: all cases occur
        torch.nn.init.normal_(parameter)
    case = problem.case(core)
    case.state[:, 1 - layers :] = (case.state[:, 1 - layers :] > 0).double()
    return core, case


sizes = st.sampled_from([2, 3, 4])


@given(
    problem=problems(reset=any_reset),
    layers=sizes,
    layer_norm=st.booleans(),
    output_size=st.sampled_from([None, 1, 5]),
)
def test_values_are_the_papers_cases(problem, layers, layer_norm, output_size):
    core, case = make(problem, layers, layer_norm, output_size=output_size)
    assert core.output_size == (output_size or core.hidden_size)
    outputs, states, detectors = paper(core, case.x, case.state, branch, case.reset)
    output, state = core(case.x, case.state, case.t0, case.reset)
    assert_close(output, outputs)
    assert_close(state, states[-1])
    found, ended = core.detectors(case.x, case.state, case.reset)
    assert torch.equal(found, detectors)
    assert torch.equal(ended, state)


def test_all_cases_occur():
    """In the middle layer of cores drawn as above."""
    cases = set()
    for seed in range(5):
        core, case = make(Problem(50, 4, 1, 3, 4, seed), 3, False)
        z, _ = core.detectors(case.x, case.state)
        own, below = z[:-1, :, 1], z[1:, :, 0]
        cases |= set(zip(own.flatten().tolist(), below.flatten().tolist()))
    assert cases == {(0, 0), (0, 1), (1, 0), (1, 1)}


@given(
    problem=problems(reset=any_reset),
    layers=sizes,
    layer_norm=st.booleans(),
    slope=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_gradients_are_those_of_the_mixture_of_cases(problem, layers, layer_norm, slope):
    core, case = make(problem, layers, layer_norm, slope)

    def gradients(run):
        leaves = [case.x.clone().requires_grad_(), case.state.clone().requires_grad_()]
        outputs, state = run(*leaves)
        loss = (outputs * case.y).sum() + (state * torch.cos(torch.arange(state.shape[1]))).sum()
        wanted = [*leaves, *core.parameters()]
        return torch.autograd.grad(loss, wanted, materialize_grads=True)

    def by_paper(x, state):
        outputs, states, _ = paper(core, x, state, mixture, case.reset)
        return outputs, states[-1]

    found = gradients(lambda x, state: core(x, state, case.t0, case.reset))
    assert_close(list(found), list(gradients(by_paper)))


def test_the_gradient_reaches_a_detector_through_what_it_decides():
    """A loss on the top layer alone teaches the bottom layer's detector."""
    core, x = HMLSTM(3, 4).double(), torch.randn(9, 2, 3).double()
    core(x, core.initial_state(2))[1][:, 16:24].sum().backward()
    assert core.weight_hh_l0.grad[-1].any() and core.bias_l0.grad[-1] != 0


# Detectors


@given(seed=seeds, layers=sizes)
def test_detectors_are_exactly_0_or_1_in_float32(seed, layers):
    torch.manual_seed(seed)
    core = HMLSTM(3, 5, layers)
    truncated = Truncated(core, 3, SyntheticGradient(core.state_size))
    _, state, (cut,) = truncated(torch.randn(11, 4, 3), core.initial_state(4))
    for z in (state[:, 1 - layers :], cut.end[..., 1 - layers :]):
        assert z.dtype == torch.float32 and ((z == 0) | (z == 1)).all()


def spaces_core() -> HMLSTM:
    """Its bottom detector is 1 where the input's only channel is above 0, the next one never."""
    core = HMLSTM(1, 4).double()
    with torch.no_grad():
        for layer, (by_input, bias) in enumerate(((1.0, 0.0), (0.0, -1.0))):
            for name in ("weight_ih", "weight_hh", "weight_top"):
                getattr(core, f"{name}_l{layer}")[-1] = 0
            getattr(core, f"weight_ih_l{layer}")[-1] = by_input
            getattr(core, f"bias_l{layer}")[-1] = bias
    return core


def test_a_layer_ticks_where_the_one_below_detects_and_is_kept_to_the_bit_elsewhere():
    core = spaces_core()
    seen = torch.tensor([0, 0, 1, 0, 1, 1, 0, 0]).double()
    x = (2 * seen - 1)[:, None, None]
    z, _ = core.detectors(x, core.initial_state(1))
    assert torch.equal(z[:, 0, 0], seen) and not z[..., 1].any()
    states = core.states(x, core.initial_state(1), None)[:, 0]
    layers = states[:, :24].unflatten(1, (3, 8))
    before = torch.cat([torch.zeros(1, 3, 8).double(), layers[:-1]])
    bottom, middle, top = (layers != before).any(2).unbind(1)
    assert bottom.all()
    assert torch.equal(middle, seen.bool())
    assert not top.any() and not layers[:, 2].any(), "nothing was ever detected below it"


def test_a_flush_forgets_the_cell_and_reads_the_layer_above():
    core = spaces_core()
    x = torch.ones(1, 1, 1).double()
    for z in (0.0, 1.0):
        state = torch.randn(1, core.state_size).double()
        state[:, -2:] = torch.tensor([z, 0])
        state.requires_grad_()
        _, ended = core(x, state)
        (gradient,) = torch.autograd.grad(ended[:, :8].sum(), state)
        assert gradient[:, 4:8].any() == (z == 0), "the cell of the bottom layer"
        assert gradient[:, 8:12].any() == (z == 1), "h of the layer above"


# Slope


def test_the_slope_changes_gradients_and_no_value():
    core, x = HMLSTM(3, 4).double(), torch.randn(9, 2, 3).double()
    values, taught = [], []
    for slope in (1.0, 0.25):
        core.slope.fill_(slope)
        core.zero_grad()
        output, state = core(x, core.initial_state(2))
        values.append(torch.cat([output.flatten(), state.flatten()]).detach())
        output.sum().backward()
        taught.append(core.weight_ih_l0.grad.clone())
    assert torch.equal(*values)
    assert not torch.equal(*taught)


def test_a_checkpoint_holds_the_slope():
    core = HMLSTM(3, 4, slope=2.5)
    other = HMLSTM(3, 4)
    other.load_state_dict(core.state_dict())
    assert float(other.slope) == 2.5


# Arithmetic, and what is refused


def test_an_update_under_autocast_keeps_the_state_in_float32():
    torch.manual_seed(0)
    core = HMLSTM(6, 16, layer_norm=True)
    truncated = Truncated(core, 3, SyntheticGradient(core.state_size, (8,)))
    x = torch.randn(8, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output, state, cuts = truncated(x, core.initial_state(4))
        loss = output.float().square().sum()
    backward(loss, cuts)
    assert state.dtype == cuts[0].end.dtype == torch.float32
    assert ((state[:, -2:] == 0) | (state[:, -2:] == 1)).all()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in core.parameters())


def test_parameters_in_bfloat16():
    core = HMLSTM(6, 16).bfloat16()
    output, state = core(torch.randn(4, 2, 6).bfloat16(), core.initial_state(2))
    assert output.dtype == torch.bfloat16 and state.dtype == torch.float32


def test_the_layer_norm_starts_as_one():
    core = HMLSTM(3, 4, 2, layer_norm=True)
    assert torch.equal(core.gain_l1, torch.ones(16)) and not core.shift_l1.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(input_size=0), "input_size must be an int of at least 1; got 0"),
        (dict(hidden_size=2.5), "hidden_size must be an int of at least 1; got 2.5"),
        (dict(num_layers=1), "num_layers must be an int of at least 2; got 1"),
        (dict(output_size=0), "output_size must be an int of at least 1; got 0"),
        (dict(slope=0), "slope must be positive and finite; got 0"),
        (dict(slope=float("inf")), "slope must be positive and finite; got inf"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HMLSTM(**(dict(input_size=3, hidden_size=4) | arguments))
