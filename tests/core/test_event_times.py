"""Times of events: a core with its own clock is told when its steps are, not how many there were."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds

import dnirnn
from dnirnn import LSTM, Deep, PhasedLSTM, SyntheticGradient, Truncated, ZeroGradient
from dnirnn.core import Core
from dnirnn.data import Batch
from dnirnn.model import SequenceModel, squared_error

KNOBS = dict(periods=(1.5, 9.0), open_ratio=0.6, leak=0.2)
CORES = {
    "phased": lambda: PhasedLSTM(2, 3, **KNOBS),
    "deep": lambda: Deep([PhasedLSTM(2, 3, **KNOBS), PhasedLSTM(3, 2, **KNOBS)]),
}


class Slow(PhasedLSTM):
    """The same by the loop over ``step``."""

    def forward(self, x, state, t0=0, reset=None):
        return Core.forward(self, x, state, t0, reset)

    def unroll(self, *arguments):
        return Core.unroll(self, *arguments)


def drawn(steps, batch, seed):
    """(x, times, never decreasing in a row)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, 2, generator=generator, dtype=torch.float64)
    gaps = torch.rand(steps, batch, generator=generator, dtype=torch.float64)
    return x, 3 * gaps.cumsum(0)


def made(name, seed) -> Core:
    torch.manual_seed(seed)
    return CORES[name]().double()


cores = st.sampled_from(sorted(CORES))
sizes = dict(steps=st.integers(1, 9), batch=st.integers(1, 3), seed=seeds)


@given(name=cores, t0=st.integers(0, 50), **sizes)
def test_times_of_even_steps_are_the_count_of_steps(name, steps, batch, seed, t0):
    core = made(name, seed)
    x, _ = drawn(steps, batch, seed)
    start = core.initial_state(batch)
    even = (t0 + torch.arange(steps, dtype=torch.float64))[:, None].expand(-1, batch)
    for found, expected in zip(core(x, start, even), core(x, start, t0)):
        assert_close(found, expected)


@given(truncation=st.integers(1, 9), reset=st.booleans(), **sizes)
def test_every_path_is_the_loop_of_step(steps, batch, seed, truncation, reset):
    """The fused one, the loop, and both cut in chunks: outputs, last state, weights' gradients."""
    x, times = drawn(steps, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    resets = torch.rand(steps, batch, generator=generator) < 0.3 if reset else None
    found = []
    for kind in (PhasedLSTM, Slow):
        torch.manual_seed(seed)
        core = kind(2, 3, **KNOBS).double()
        for estimator in (None, ZeroGradient(), SyntheticGradient(6).double()):
            core.zero_grad()
            if estimator is None:
                output, state = core(x, core.initial_state(batch), times, resets)
                output.square().sum().backward()
                whole = [output, state]
            else:
                model = Truncated(core, truncation, estimator)
                output, state, cuts = model(x, core.initial_state(batch), times, True, resets)
                dnirnn.backward(output.square().sum(), cuts, 1.0)
                found.append([parameter.grad.clone() for parameter in core.parameters()])
                assert_close(output, whole[0])
                assert_close(state, whole[1])
    for gradients in found[1:]:
        for one, other in zip(gradients, found[0]):
            assert_close(one, other)
    state = start = core.initial_state(batch)
    for i in range(steps):
        state = state if resets is None else torch.where(resets[i, :, None], start, state)
        output, state = core.step(x[i], state, times[i])
        assert_close(output, whole[0][i])


@given(name=cores, at=st.integers(1, 8), **sizes)
def test_a_sequence_is_cut_anywhere(name, steps, batch, seed, at):
    core, (x, times) = made(name, seed), drawn(steps + at, batch, seed)
    expected, ended = core(x, core.initial_state(batch), times)
    before, state = core(x[:at], core.initial_state(batch), times[:at])
    after, state = core(x[at:], state, times[at:])
    assert_close(torch.cat([before, after]), expected)
    assert_close(state, ended)


@given(shift=st.floats(-50, 50), **sizes)
def test_only_the_times_say_when(steps, batch, seed, shift):
    """Moved with all the units' shifts, they change nothing; moved alone, they do."""
    core, (x, times) = made("phased", seed), drawn(steps, batch, seed)
    start = core.initial_state(batch)
    expected = core(x, start, times)[0]
    with torch.no_grad():
        core.shift += shift
    assert_close(core(x, start, times + shift)[0], expected, 1e-6)
    assert not torch.equal(core(x, start, times + shift + 0.77)[0], expected)


def test_float32_times_of_a_float32_core():
    torch.manual_seed(0)
    core = PhasedLSTM(2, 3, **KNOBS)
    x, times = drawn(6, 2, 0)
    start = core.initial_state(2)
    assert_close(core(x.float(), start, times.float())[0], core(x.float(), start, times)[0], 1e-4)


def test_refused():
    x, times = drawn(4, 2, 0)
    lstm, phased = LSTM(2, 3).double(), made("phased", 0)
    with pytest.raises(TypeError, match=r"a LSTM counts steps, and takes no times of events; got torch.float64"):
        lstm(x, lstm.initial_state(2), times)
    with pytest.raises(TypeError, match="a Deep counts steps"):
        deep = Deep([PhasedLSTM(2, 3), PhasedLSTM(3, 3)], dropout=0.5).double()
        deep(x, deep.initial_state(2), times)
    for run in (phased, Truncated(phased, 2, ZeroGradient())):
        with pytest.raises(ValueError, match=r"t0 must be \[4, 2\] where it is the times of the steps; got \(2,\)"):
            run(x, phased.initial_state(2), times[0])


def test_what_follows_events_does_not_know_the_time():
    x, times = drawn(4, 2, 0)
    core = made("phased", 0)
    _, state = core(x, core.initial_state(2), times)
    with pytest.warns(UserWarning, match="PhasedLSTM reads the time, and this state does not know it"):
        core(x, state)


def test_a_model_gives_a_batchs_times_to_a_core_that_takes_them():
    x, times = drawn(6, 3, 0)
    y = torch.zeros(6, 3, 1, dtype=torch.float64)
    batch = Batch(x, y, first=True, final=True, times=times)
    one = batch.piece(0, 2)
    assert torch.equal(one.times, times[:2]) and torch.equal(one.following.times, times[2:3])
    assert torch.equal(one.then(batch.steps(2, 6)).times, times)
    assert torch.equal(batch.rows(1, 2).times, times[:, 1:2]) and batch.to(x.device) is batch
    for core, takes in ((made("phased", 0), True), (LSTM(2, 3).double(), False)):
        model = SequenceModel(
            torch.nn.Identity(), Truncated(core, 2, ZeroGradient()), torch.nn.Linear(3, 1).double(), squared_error
        )
        start = model.initial_state(3)
        timed = model(batch, start, 0)[0]
        plain = model(batch._replace(times=None), start, 0)[0]
        assert torch.equal(timed, plain) is not takes
        assert_close(timed, model.loss(model.unroll(x, start, model.clock(batch, 0))[0], y))
