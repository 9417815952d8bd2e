"""The plain loop over windows is right by itself: a state knows the time, or it is asked for."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from strategies import Clock, assert_close, problems
from torch import nn

from dnirnn import (
    LSTM,
    Clockwork,
    Deep,
    Dilated,
    Every,
    NormLSTM,
    PhasedLSTM,
    Skip,
    SyntheticGradient,
    Truncated,
    WeightDrop,
    ZeroGradient,
    backward,
)
from dnirnn.config.network import BFloat16Model
from dnirnn.data import Batch
from dnirnn.model import SequenceModel, bit_nats

TICKING = {
    "clockwork": lambda: Clockwork(3, 6, (1, 3)),
    "every in deep": lambda: Deep([LSTM(3, 4), Every(LSTM(4, 4), 3)]),
    "phased in skip": lambda: Skip(PhasedLSTM(3, 4, periods=(1.5, 6.0), open_ratio=0.6)),
    "zoneout": lambda: NormLSTM(3, 4, zoneout_h=0.5),
    "dropout of a weight-dropped": lambda: WeightDrop(
        Deep([LSTM(3, 4), LSTM(4, 4)], dropout=0.5), 0.5
    ),
}


@pytest.fixture(params=TICKING)
def core(request):
    return TICKING[request.param]().double()


def windows(run, core, x, state):
    outputs = []
    for window in x.split(2):
        output, state = run(window, state)[:2]
        outputs.append(output)
    return torch.cat(outputs), state


@given(problem=problems())
def test_a_loop_over_windows_is_one_call(build, problem):
    """Any core, with no word of t0: evaluated, under a Truncated with and without an estimator."""
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    x, start = problem.case(core).x, core.initial_state(problem.batch)
    expected = core(x, start, 0)
    for run in (
        core,
        Truncated(core, problem.truncation, ZeroGradient()),
        Truncated(core, problem.truncation, SyntheticGradient(core.state_size).double()),
    ):
        output, state = windows(run, core, x, start)
        assert_close(output, expected[0])
        assert_close(state, expected[1])


def test_the_time_goes_on_from_t0_and_from_resets(core):
    x, state = torch.randn(8, 2, 3).double(), core.initial_state(2)
    reset = torch.zeros(4, 2, dtype=torch.bool)
    reset[2, 1] = True
    truncated = Truncated(core, 2, ZeroGradient())
    for t0 in (5, torch.tensor([5, 1])):
        ended = truncated(x[:4], state, t0, reset=reset)[1]
        output = truncated(x[4:], ended)[0]
        since = torch.tensor([9, 2]) if isinstance(t0, int) else torch.tensor([9, 2])
        assert_close(output, truncated(x[4:], ended, since)[0])


def changed(state):
    state[0] = 0
    return state


@pytest.mark.parametrize(
    "other",
    [changed, lambda s: s * 1.0, lambda s: s[[1, 0]], copy.deepcopy, torch.zeros_like],
    ids=["changed in place", "multiplied", "rows", "copied", "zeros"],
)
def test_a_state_that_does_not_know_is_asked_about(core, other):
    x = torch.randn(4, 2, 3).double()
    truncated = Truncated(core, 2, ZeroGradient())
    _, state, _ = truncated(x, core.initial_state(2))
    unknown = other(state)
    for run in (core, truncated):
        with pytest.warns(UserWarning, match="reads the time.*give t0=0.*taken as 0"):
            output = run(x, unknown)[0]
        assert torch.equal(output, run(x, unknown, 0)[0])
        run(x, unknown, 4)


def test_a_core_that_does_not_read_the_time_asks_for_nothing(recwarn):
    x = torch.randn(4, 2, 3)
    for core in (LSTM(3, 4), NormLSTM(3, 4), Dilated(3, 4, [1, 2]), NormLSTM(3, 4, zoneout_h=0.5).eval()):
        state = torch.zeros(2, core.state_size)
        Truncated(core, 2, ZeroGradient())(x, state)
        core(x, state)
    assert not recwarn.list


def test_a_core_of_ones_own_may_say_that_it_reads_the_time():
    class Told(Clock):
        reads_t = True

    core = Deep([Told(3, 4)])
    with pytest.warns(UserWarning, match="Deep reads the time"):
        core(torch.randn(2, 2, 3), torch.zeros(2, 4))


def test_evaluation_in_inference_mode_goes_on(core):
    core.eval()
    x, state = torch.randn(6, 2, 3).double(), core.initial_state(2)
    expected = core(x, state, 0)[0]
    with torch.inference_mode():
        output, _ = windows(core, core, x, core.initial_state(2))
    assert_close(output, expected)


def test_a_training_loop_may_edit_nothing_else(core):
    """With an estimator, over windows: what an explicit t0 gives, to the last bit."""
    estimator = SyntheticGradient(core.state_size).double()
    torch.nn.init.normal_(estimator.layers[0].weight, std=0.1)
    truncated = Truncated(core, 2, estimator)
    x = torch.randn(6, 2, 3).double()
    found = []
    for explicit in (True, False):
        truncated.zero_grad()
        state = core.initial_state(2)
        for i, window in enumerate(x.split(2)):
            output, state, cuts = truncated(window, state, *[2 * i] * explicit)
            backward(output.square().sum(), cuts)
        found.append([p.grad.clone() for p in truncated.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_state_that_knows_can_be_saved(tmp_path):
    core = TICKING["clockwork"]()
    _, state = core(torch.randn(4, 2, 3), core.initial_state(2))
    torch.save({"state": state}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)["state"]
    assert torch.equal(loaded, state)
    assert torch.equal(pickle.loads(pickle.dumps(state)), state)
    copy.deepcopy(core)


@pytest.mark.parametrize("kind", [SequenceModel, BFloat16Model])
def test_a_model_s_state_knows_the_time_too(kind):
    core = TICKING["every in deep"]()
    model = kind(nn.Identity(), Truncated(core, 2, ZeroGradient()), nn.Identity(), bit_nats).eval()
    x, y = torch.randn(6, 2, 3), torch.ones(6, 2, 4)
    whole, ended, _ = model(Batch(x, y), model.initial_state(2))
    nats, state = [], model.initial_state(2)
    for i in range(0, 6, 2):
        found, state, _ = model(Batch(x[i : i + 2], y[i : i + 2]), state)
        nats.append(found)
    assert_close(torch.cat(nats), whole, 1e-6)
    assert_close(state, ended, 1e-6)
