"""Hierarchy: two networks of two rates, as a loop by hand, and cut at the ticks of the slow one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    Counter,
    Leaky,
    Oracle,
    Problem,
    assert_close,
    full_bptt,
    gradients,
    own_loss,
    seeds,
)
from torch import nn

from dnirnn import LSTM, Hierarchy, SyntheticGradient, ZeroGradient, backward

sizes = st.integers(1, 3)


def draw(input_size, fast, slow, period, seed) -> Hierarchy:
    torch.manual_seed(seed)
    return Hierarchy(LSTM(input_size + slow, fast), LSTM(fast, slow), period).double()


def case_of(core, steps, batch=2, seed=0):
    problem = Problem(steps, batch, 1, core.input_size, core.output_size, seed, final="yes")
    return problem.case(core)


def update(truncated, case):
    truncated.zero_grad()
    output, _, interfaces = truncated(case.x, case.state, case.t0, case.final)
    return interfaces, backward(own_loss(output, case.y), interfaces)


# What it computes


@given(input_size=sizes, fast=sizes, slow=sizes, period=st.integers(1, 4), seed=seeds)
def test_it_is_two_torch_cells_of_which_one_waits(input_size, fast, slow, period, seed):
    """Outputs and gradients, on cells of torch's own; 11 steps are no multiple of most periods."""
    core = draw(input_size, fast, slow, period, seed)
    cells = nn.LSTMCell(input_size + slow, fast), nn.LSTMCell(fast, slow)
    for cell, part in zip(cells, (core.fast, core.slow)):
        state = part.state_dict()
        cell.double().load_state_dict({name.removesuffix("_l0"): state[name] for name in state})
    case = case_of(core, steps=11, seed=seed)

    h_fast, c_fast, h_slow, c_slow, message = case.state.split([fast] * 2 + [slow] * 3, 1)
    expected = []
    for number, x in enumerate(case.x, start=1):
        h_fast, c_fast = cells[0](torch.cat([x, message], 1), (h_fast, c_fast))
        if number % period == 0:
            h_slow, c_slow = cells[1](h_fast, (h_slow, c_slow))
            message = h_slow
        expected.append(torch.cat([h_fast, message], 1))
    own_loss(torch.stack(expected), case.y).backward()

    output, state = core(case.x, case.state)
    own_loss(output, case.y).backward()
    assert_close(output, torch.stack(expected))
    assert_close(state, torch.cat([h_fast, c_fast, h_slow, c_slow, message], 1))
    assert_close(gradients(core), gradients(cells[0]) + gradients(cells[1]))


class Sum(Counter):
    """Says and keeps the sum of its inputs of the step."""

    def __init__(self, input_size):
        super().__init__()
        self.input_size = input_size

    def step(self, x_BI, state_BS, t):
        total = x_BI.sum(1, keepdim=True) * self.increment
        return total, total


class Teller(Counter):
    """Says its t, from 1 on."""

    def step(self, x_BI, state_BS, t):
        said = torch.as_tensor(t).expand(len(state_BS)).to(state_BS)[:, None] + 1
        return said, state_BS + self.increment


def test_a_message_is_read_from_the_step_after_its_tick_on():
    """The slow network counts its ticks; the fast one hears 0, then 1 after the first tick, ..."""
    core = Hierarchy(Sum(2), Teller(), 3)
    output, state = core(torch.zeros(8, 1, 1), core.initial_state(1))
    assert output[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert output[:, 0, 1].tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert state.tolist() == [[2, 2, 2]]


def test_a_third_level_ticks_every_product_of_the_periods():
    core = Hierarchy(Sum(3), Hierarchy(Sum(2), Teller(), 2), 3)
    output, _ = core(torch.zeros(14, 1, 1), core.initial_state(1))
    assert output[:, 0, 2].tolist() == [0] * 5 + [1] * 6 + [2] * 3


def test_rows_tick_by_the_start_of_their_own_sequences():
    core = Hierarchy(Sum(2), Teller(), 3)
    reset = torch.zeros(7, 2, dtype=torch.bool)
    reset[2, 1] = True
    output, _ = core(torch.zeros(7, 2, 1), core.initial_state(2), torch.tensor([1, 0]), reset)
    assert output[:, 0, 1].tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert output[:, 1, 1].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_the_slow_network_is_run_at_its_ticks_only():
    class Witness(Leaky):
        ran = 0

        def forward(self, *arguments):
            Witness.ran += 1
            return super().forward(*arguments)

        def step(self, *arguments):
            Witness.ran += 1
            return super().step(*arguments)

    core = Hierarchy(Leaky(3, 2), Witness(2, 2), 4)
    core(torch.zeros(3, 1, 1), core.initial_state(1))
    for t in range(3):
        core.step(torch.zeros(1, 1), core.initial_state(1), t)
    assert Witness.ran == 0
    core(torch.zeros(8, 1, 1), core.initial_state(1))
    assert Witness.ran == 4, "two ticks, each one call and the step in it"


@pytest.mark.parametrize("reduced", ["parameters", "autocast"])
def test_the_state_stays_float32(reduced):
    core = draw(3, 4, 5, 2, seed=0)
    core = core.bfloat16() if reduced == "parameters" else core.float()
    x = torch.randn(5, 2, 3, dtype=torch.bfloat16 if reduced == "parameters" else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced == "autocast"):
        output, state = core(x, core.initial_state(2))
        stepped = core.initial_state(2)
        for t, row in enumerate(x):
            said, stepped = core.step(row, stepped, t)
    assert state.dtype == stepped.dtype == torch.float32
    assert_close(state, stepped, 0.02)
    assert_close(output[-1], said, 0.02)


# The ways of training it


@given(period=st.integers(1, 3), ticks=st.integers(1, 3), horizons=sizes, seed=seeds)
def test_full_is_backpropagation_over_the_slow_horizon(period, ticks, horizons, seed):
    core = draw(2, 3, 2, period, seed)
    horizon = period * ticks
    case = case_of(core, horizon * horizons, seed=seed)
    update(core.truncate("full", ticks), case)
    found, state = gradients(core), case.state
    expected = [torch.zeros_like(g) for g in found]
    for begin in range(0, len(case.x), horizon):
        part = slice(begin, begin + horizon)
        one = case._replace(x=case.x[part], y=case.y[part], state=state, t0=begin)
        expected = [a + b for a, b in zip(expected, full_bptt(core, one)[0])]
        state = core(one.x, state, begin)[1].detach()
    assert_close(found, expected)


@given(period=st.integers(1, 4), ticks=st.integers(1, 4), seed=seeds)
def test_dni_with_an_oracle_is_full_backpropagation(period, ticks, seed):
    """The oracle says the gradients at the cuts, which lie at the ticks: all errors are zero."""
    core = draw(2, 3, 2, period, seed)
    case = case_of(core, period * ticks, seed=seed)
    _, at_state = full_bptt(core, case)
    oracle = Oracle(at_state[::period])
    _, result = update(core.truncate("dni", ticks, oracle), case)
    found = gradients(core)
    assert result["estimator_error"] < 1e-20
    update(core.truncate("full", ticks), case)
    assert_close(found, gradients(core))


@given(period=st.integers(1, 3), ticks=st.integers(1, 3), seed=seeds)
def test_dni_that_knows_nothing_yet_is_the_truncated_one(period, ticks, seed):
    core = draw(2, 3, 2, period, seed)
    case = case_of(core, period * ticks, seed=seed)
    update(core.truncate("dni", ticks), case)
    found = gradients(core)
    update(core.truncate("truncated", ticks), case)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(core)))


@given(period=st.integers(1, 3), seed=seeds)
def test_gradients_of_the_slow_answer_reach_as_far_as_the_way_of_training_says(period, seed):
    """To all of the inputs of the horizon, or to those since the tick before."""
    core, ticks = draw(2, 3, 2, period, seed), 3
    case = case_of(core, period * ticks, seed=seed)
    for training, reached in (("full", period * ticks), ("truncated", period)):
        x = case.x.clone().requires_grad_()
        output, _, _ = core.truncate(training, ticks)(x, case.state)
        output[-1, :, core.fast.output_size :].sum().backward()
        assert x.grad.abs().sum((1, 2)).ne(0).tolist() == [
            t >= len(x) - reached for t in range(len(x))
        ]


@given(period=st.integers(1, 3), seed=seeds)
def test_what_the_fast_network_makes_of_a_message_is_what_its_estimator_is_taught(period, seed):
    """And what the next tick makes of the slow state: the cut is the interface of both levels."""
    core = draw(2, 3, 2, period, seed)
    estimator = SyntheticGradient(core.state_size, (4,), 1.0, 1.0).double()
    nn.init.normal_(estimator.layers[-1].weight)
    case = case_of(core, 2 * period, seed=seed)._replace(final=False)
    (cut,), _ = update(core.truncate("dni", 2, estimator), case)

    fast, slow, message = (part.requires_grad_() for part in cut.start[1].split(core.sizes, 1))
    heard = message.expand(period, -1, -1)
    outputs, fast_end = core.fast(torch.cat([case.x[period:], heard], 2), fast)
    said, slow_end = core.slow(outputs[-1:], slow)
    spoken = torch.cat([heard[:-1], said])
    loss = own_loss(torch.cat([outputs, spoken], 2), case.y[period:])
    end = torch.cat([fast_end, slow_end, said[0]], 1)
    expected = torch.autograd.grad(
        [loss, end], [fast, slow, message], [torch.ones_like(loss), estimator(end).detach()]
    )
    assert_close(cut.probe.grad[1], torch.cat(expected, 1))


def test_both_networks_are_updated_by_a_chunk_alone():
    """No later step or tick is waited for: after ``period`` steps every gradient is there."""
    core = draw(2, 3, 2, 3, seed=0)
    truncated = core.truncate("dni", 5)
    nn.init.normal_(truncated.estimator.layers[-1].weight)
    update(truncated, case_of(core, 3)._replace(final=False))
    assert all(g.any() for g in gradients(core))


# A slow network that is carried back through several of its ticks


def with_back(core, back) -> Hierarchy:
    """The same networks."""
    return Hierarchy(core.fast, core.slow, core.period, back)


@given(
    period=st.integers(1, 3), back=st.integers(1, 4), steps=st.integers(1, 14), at=st.integers(0, 13),
    seed=seeds,
)  # fmt: skip
def test_how_far_it_is_carried_back_changes_nothing_that_is_not_cut(period, back, steps, at, seed):
    """Neither an output, cut anywhere, nor a gradient where nothing is."""
    core = draw(2, 3, 2, period, seed)
    other = with_back(core, back)
    case = case_of(core, steps, seed=seed)
    start = [one.initial_state(2) for one in (core, other)]
    expected, found = core(case.x, start[0])[0], other(case.x, start[1])[0]
    assert_close(found, expected)
    at = min(at, steps)
    outputs, state = [], start[1]
    for piece in (case.x[:at], case.x[at:]):
        if len(piece):
            output, state = other(piece, state)
            outputs.append(output.detach())
    assert_close(torch.cat(outputs), expected)
    for output in (expected, found):
        core.zero_grad()
        own_loss(output, case.y).backward()
        if output is expected:
            whole = [gradient.clone() for gradient in gradients(core)]
    for one, same in zip(gradients(core), whole):
        assert_close(one, same)


@given(period=st.integers(1, 3), back=st.integers(2, 4), windows=st.integers(1, 2), seed=seeds)
def test_cut_at_every_tick_the_slow_network_has_its_whole_gradient(period, back, windows, seed):
    """That of its own loss over its ticks, on messages that it does not reach."""
    core = with_back(draw(2, 3, 2, period, seed), back)
    ticks = back * windows
    case = case_of(core, period * ticks, seed=seed)._replace(state=core.initial_state(2))
    for estimator in (None, SyntheticGradient(core.state_size).double()):
        truncated = core.truncate("truncated" if estimator is None else "dni", back, estimator)
        core.zero_grad()
        output, _, cuts = truncated(case.x, case.state, 0, True)
        said = output[period - 1 :: period, :, 3:]
        backward(own_loss(said, case.y[:ticks, :, :2]), cuts)
        found = [parameter.grad.clone() for parameter in core.slow.parameters()]
        messages = output[period - 1 :: period, :, :3].detach()
        core.zero_grad()
        state, alone = core.slow.initial_state(2), []
        for window in messages.split(back):
            one, state = core.slow(window, state.detach())
            alone.append(one)
        own_loss(torch.cat(alone), case.y[:ticks, :, :2]).backward()
        for one, expected in zip(found, core.slow.parameters()):
            assert_close(one, expected.grad)


# Bad input


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: Hierarchy(nn.LSTM(3, 2), LSTM(2, 2), 2), TypeError, "fast .*Core; got LSTM"),
        (lambda: Hierarchy(LSTM(3, 2), nn.GRU(2, 2), 2), TypeError, "slow .*Core; got GRU"),
        (lambda: Hierarchy(LSTM(3, 2), LSTM(2, 2), 0), ValueError, "period .*at least 1.*got 0"),
        (lambda: Hierarchy(LSTM(3, 2), LSTM(2, 2), 2, 0), ValueError, "back .*at least 1.*got 0"),
        (lambda: Hierarchy(LSTM(3, 2), LSTM(2, 2), 1.5), ValueError, "period .*int .*got 1.5"),
        (lambda: Hierarchy(LSTM(3, 2), LSTM(2, 2), True), ValueError, "period .*int .*got True"),
        (lambda: Hierarchy(LSTM(3, 2), LSTM(4, 2), 2), ValueError, "slow .*output of 2.*is 4"),
        (lambda: Hierarchy(LSTM(2, 2), LSTM(2, 2), 2), ValueError, "fast .*output of 2 .*is 2"),
        (lambda: draw(1, 2, 2, 2, 0).truncate("bptt", 2), ValueError, "training .*got 'bptt'"),
        (lambda: draw(1, 2, 2, 2, 0).truncate("full", 0), ValueError, "ticks .*got 0"),
        (
            lambda: draw(1, 2, 2, 2, 0).truncate("full", 2, ZeroGradient()),
            ValueError,
            "estimator goes with training dni; got one with full",
        ),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()
