"""PhasedLSTM: its gate unit by unit as the paper draws it, its cell as the paper writes it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds

from dnirnn import LSTM, PhasedLSTM


def gate(t, period, shift, ratio, leak):
    """One unit's time gate at t, of 0-d tensors."""
    phase = torch.remainder(t - shift, period.detach()) / period
    if phase < ratio / 2:
        return 2 * phase / ratio
    if phase < ratio:
        return 2 - 2 * phase / ratio
    return leak * phase


def paper(core, x, state, t0, leak):
    """Section 2's equations, without peepholes: (outputs, h, c)."""
    size = core.hidden_size
    h, c = state[:, :size], state[:, size:]
    w_i, w_f, w_g, w_o = core.weight_ih.split(size)
    u_i, u_f, u_g, u_o = core.weight_hh.split(size)
    b_i, b_f, b_g, b_o = (core.bias_ih + core.bias_hh).split(size)
    outputs = []
    for i, x_t in enumerate(x):
        k = torch.stack(
            [
                gate(t0 + i, torch.exp(log_period), shift, core.open_ratio, leak)
                for log_period, shift in zip(core.log_period, core.shift)
            ]
        )
        into = torch.sigmoid(x_t @ w_i.T + h @ u_i.T + b_i)
        forget = torch.sigmoid(x_t @ w_f.T + h @ u_f.T + b_f)
        out = torch.sigmoid(x_t @ w_o.T + h @ u_o.T + b_o)
        c_open = forget * c + into * torch.tanh(x_t @ w_g.T + h @ u_g.T + b_g)
        h_open = out * torch.tanh(c_open)
        h, c = k * h_open + (1 - k) * h, k * c_open + (1 - k) * c
        outputs.append(h)
    return torch.stack(outputs), h, c


@given(
    steps=st.integers(1, 8),
    batch=st.integers(1, 3),
    size=st.integers(1, 5),
    t0=st.integers(0, 10_000),
    ratio=st.sampled_from([0.05, 0.5, 1.0]),
    leak=st.sampled_from([0.0, 0.001, 0.3]),
    training=st.booleans(),
    seed=seeds,
)
def test_equals_the_papers_loop(steps, batch, size, t0, ratio, leak, training, seed):
    torch.manual_seed(seed)
    core = PhasedLSTM(2, size, periods=(1.5, 9.0), open_ratio=ratio, leak=leak)
    core = core.double().train(training)
    x = torch.randn(steps, batch, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(batch, 2 * size, dtype=torch.float64, requires_grad=True)
    outputs, h, c = paper(core, x, state, t0, leak if training else 0.0)
    output, last = core(x, state, t0)
    assert_close(output, outputs)
    assert_close(last, torch.cat([h, c], 1))
    y = torch.randn_like(outputs)
    wanted = [x, state, *core.parameters()]
    expected = torch.autograd.grad((outputs * y).sum(), wanted)
    assert_close(torch.autograd.grad((output * y).sum(), wanted), expected)


def test_the_gradient_of_a_period_does_not_grow_with_time():
    core = PhasedLSTM(1, 4, open_ratio=0.5).double()
    with torch.no_grad():
        core.log_period.fill_(math.log(8))
        core.shift.copy_(torch.tensor([0.5, 2.5, 4.5, 6.5]))

    def gradients(t):
        wanted = [core.log_period, core.shift]
        return list(torch.autograd.grad(core.openness(t).sum(), wanted))

    early = gradients(3)
    assert all(part.any() for part in early)
    assert_close(gradients(3 + 8 * 10**6), early, 1e-6)


def test_the_gate_opens_closes_and_leaks():
    """A period of 10 that is open for 4 of it, shifted by 2.5."""
    core = PhasedLSTM(1, 1, open_ratio=0.4, leak=0.5).double()
    with torch.no_grad():
        core.log_period.fill_(math.log(10))
        core.shift.fill_(2.5)
    t = torch.arange(3, 14)
    around, leaking = [0.25, 0.75, 0.75, 0.25], [0.225, 0.275, 0.325, 0.375, 0.425, 0.475]
    expected = torch.tensor([*around, *leaking, 0.25], dtype=torch.float64)
    assert_close(core.openness(t)[:, 0], expected)
    assert_close(core.openness(5), expected[2:3])
    expected[4:10] = 0
    assert_close(core.eval().openness(t)[:, 0], expected)


@given(steps=st.integers(1, 6), seed=seeds)
def test_a_unit_whose_gate_is_shut_keeps_its_state_exactly(steps, seed):
    torch.manual_seed(seed)
    core = PhasedLSTM(2, 4, periods=(1000.0, 1000.0)).eval()
    with torch.no_grad():
        core.shift.copy_(torch.tensor([0.0, 0.0, 500.0, 500.0]))
    state = torch.randn(3, 8)
    _, last = core(torch.randn(steps, 3, 2), state, 10)
    kept = (last == state).all(0)
    assert kept.tolist() == [False, False, True, True] * 2


def test_open_for_good_it_is_an_lstm(path):
    """Where every gate stands at 1: the peak of a period too long for a step to matter."""
    core, oracle = PhasedLSTM(2, 3, open_ratio=1.0).double(), LSTM(2, 3).double()
    oracle.load_state_dict({f"{k}_l0": v for k, v in list(core.state_dict().items())[:4]})
    with torch.no_grad():
        core.log_period.fill_(math.log(1e14))
        core.shift.fill_(-0.5e14)
    x, state = torch.randn(6, 2, 2).double(), torch.randn(2, 6).double()
    for found, expected in zip(core(x, state, 0), oracle(x, state)):
        assert_close(found, expected)


def test_the_phase_is_exact_late_in_a_long_sequence():
    """In float32, whose numbers are 8 apart at 1e8."""
    core = PhasedLSTM(1, 8, periods=(2.0, 5.0))
    late = 10**8 + 1
    exact = (late - core.shift.double()) / core.log_period.double().exp()
    expected = torch.where((exact % 1) < 0.025, 40 * (exact % 1), 0.001 * (exact % 1))
    closing = ((exact % 1) >= 0.025) & ((exact % 1) < 0.05)
    expected = torch.where(closing, 2 - 40 * (exact % 1), expected)
    assert_close(core.openness(late), expected.float(), 1e-6)


def test_periods_start_log_uniform_and_shifts_within_their_periods():
    core = PhasedLSTM(1, 4096, periods=(2.0, 200.0))
    share = (core.log_period - math.log(2)) / math.log(100)
    turns = core.shift / core.log_period.exp()
    for uniform in (share, turns):
        assert 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() <= 1
        assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / 4096) ** 0.5
    assert abs(torch.corrcoef(torch.stack([share, turns]))[0, 1]) < 5 / 64


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_keeps_a_float32_state(autocast):
    core = PhasedLSTM(3, 4, open_ratio=1.0)
    core = core if autocast else core.bfloat16()
    x = torch.randn(5, 2, 3, dtype=torch.float32 if autocast else torch.bfloat16)
    state = core.initial_state(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, last = core(x, state)
        said, end = core.step(x[0], state, 0)
    assert last.dtype == end.dtype == torch.float32
    assert output.dtype == said.dtype == x.dtype
    assert_close(output[0], said, 0.02)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(periods=(0.0, 3.0)), "periods must be"),
        (dict(periods=(3.0, 2.0)), "periods must be"),
        (dict(periods=(1.0, math.inf)), "periods must be"),
        (dict(open_ratio=0.0), "open_ratio must be"),
        (dict(open_ratio=1.5), "open_ratio must be"),
        (dict(leak=-0.1), "leak must be"),
    ],
)
def test_what_does_not_fit_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        PhasedLSTM(2, 3, **options)


@pytest.mark.parametrize(("sizes", "named"), [((0, 3), "input_size"), ((3, 0), "hidden_size")])
def test_a_size_below_one_is_named(sizes, named):
    with pytest.raises(ValueError, match=f"{named} must be an int of at least 1; got 0"):
        PhasedLSTM(*sizes)
