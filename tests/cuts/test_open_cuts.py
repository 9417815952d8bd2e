"""Random cuts: the mean over all draws is full backpropagation's gradient, whatever is predicted."""

import itertools

import influence_balancing
import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import make_model, make_trainer
from strategies import (
    any_reset,
    any_t0,
    assert_close,
    fittings,
    full_bptt,
    gradients,
    own_loss,
    problems,
)
from torch import nn

from dnirnn import LSTM, Core, SyntheticGradient, TrueGradient, Truncated, ZeroGradient, backward
from dnirnn.commands.cli import main
from dnirnn.core import advance
from dnirnn.model import SequenceModel
from dnirnn.training.trainer import Interrupted


def calls(truncated, case, opens):
    """The sequence, a call up to each closed cut; .grad adds up."""
    length, chunks = truncated.truncation, len(opens) + 1
    ends = [n + 1 for n, is_open in enumerate(opens) if not is_open] + [chunks]
    state, begin = case.state, 0
    for end in ends:
        steps = slice(begin * length, end * length)
        reset = None if case.reset is None else case.reset[steps]
        t0 = advance(case.t0, case.reset, steps.start)
        final = end == chunks
        output, state, interfaces = truncated(case.x[steps], state, t0, final, reset)
        backward(own_loss(output, case.y[steps]), interfaces)
        begin = end


@given(
    problem=problems(t0=any_t0, reset=any_reset, max_steps=6),
    open_cuts=st.sampled_from([0.1, 0.5, 0.9]),
    fitting=st.none() | fittings,
)
def test_the_mean_over_all_draws_is_full_backpropagation(build, problem, open_cuts, fitting):
    core = build(problem.input_size, problem.hidden_size, problem.seed)
    case = problem.case(core)
    if case.reset is not None:
        # A sequence that starts at a call's first step is cut off by the caller's final.
        case.reset[:: problem.truncation] = False
    expected, _ = full_bptt(core, case)
    estimator = ZeroGradient() if fitting is None else fitting.estimator(core)
    truncated = Truncated(core, problem.truncation, estimator, open_cuts)
    mean = [torch.zeros_like(one) for one in expected]
    for opens in itertools.product([False, True], repeat=problem.chunks - 1):
        chance = open_cuts ** sum(opens) * (1 - open_cuts) ** (len(opens) - sum(opens))
        core.zero_grad()
        calls(truncated, case, opens)
        for total, one in zip(mean, gradients(core)):
            total += chance * one
    assert_close(mean, expected, 1e-9)


def test_a_perfect_prediction_leaves_no_variance():
    """Every draw alone is then full backpropagation's gradient, and so is every target."""

    class Told(SyntheticGradient):
        """Says the true gradient: of Counting's state at t, the number of steps that are left."""

        def forward(self, state):
            return 7 - state

    class Counting(Core):
        input_size = output_size = state_size = 1

        def __init__(self):
            super().__init__()
            self.increment = nn.Parameter(torch.ones(()))

        def step(self, x, state, t):
            state = state + self.increment
            return state, state

    core = Counting()
    truncated = Truncated(core, 2, Told(1, scale=1.0, discount=1.0), 0.5)
    for opens in itertools.product([False, True], repeat=3):
        core.zero_grad()
        state, begin = torch.zeros(1, 1), 0
        for end in [n + 1 for n, is_open in enumerate(opens) if not is_open] + [4]:
            x = torch.zeros(min(2 * end, 7) - 2 * begin, 1, 1)
            output, state, (cut,) = truncated(x, state, 2 * begin, end == 4)
            backward(output.sum(), [cut])
            assert cut.probe.grad.flatten().tolist() == [7 - 2 * n for n in range(begin, end)]
            begin = end
        assert core.increment.grad == 28


def test_the_lengths_are_geometric():
    torch.manual_seed(0)
    truncated = Truncated(LSTM(1, 1), 1, ZeroGradient(), 0.75)
    drawn = torch.tensor([truncated.draw_chunks() for _ in range(20_000)])
    for chunks in (1, 2, 3, 6):
        chance = 0.25 * 0.75 ** (chunks - 1)
        assert float((drawn == chunks).float().mean()) == pytest.approx(chance, abs=0.01)
    assert Truncated(LSTM(1, 1), 1, ZeroGradient()).draw_chunks() == 1
    assert Truncated(LSTM(1, 1), 1, ZeroGradient(), 0.0).draw_chunks() == 1


@pytest.mark.parametrize("way", influence_balancing.WAYS)
def test_influence_balancing(way):
    """Short windows diverge; far enough back, random cuts and predictions lead to theta = -1/2."""
    thetas, errors = influence_balancing.train(influence_balancing.WAYS[way])
    if way in ("one step (TBPTT)", "carried back 2 steps"):
        assert thetas[-1] > 1 and errors[-1] > errors[0]
    else:
        assert thetas[-1] == pytest.approx(-0.5, abs=0.05) and errors[-1] < 0.05


def test_its_figure(tmp_path):
    found = {"one": ([0.0, 0.5], [1.0, 1.0]), "other": ([0.0, -0.5], [1.0, 0.0])}
    influence_balancing.draw(found, str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_fit_is_refused():
    core = LSTM(1, 2)
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"from 0 to below 1; got {wrong}"):
            Truncated(core, 1, ZeroGradient(), wrong)
    with pytest.raises(TypeError, match="open_cuts must be a number or None; got True"):
        Truncated(core, 1, ZeroGradient(), True)
    with pytest.raises(ValueError, match="looks at no cut"):
        Truncated(core, 1, TrueGradient(), 0.5)
    with pytest.raises(ValueError, match="without dense"):
        Truncated(core, 1, SyntheticGradient(4, dense=True), 0.5)
    with pytest.raises(ValueError, match="one chunk of 1 steps with open_cuts=0; got 2"):
        Truncated(core, 1, ZeroGradient(), 0.0)(torch.zeros(2, 1, 1), core.initial_state(1))


def opening(estimator) -> SequenceModel:
    model = make_model(estimator)
    model.truncated = Truncated(model.truncated.core, 3, model.truncated.estimator, 0.6)
    return model


@pytest.mark.parametrize("estimator", ["none", "dni"])
def test_a_trainer_draws_its_updates_and_goes_on_to_the_bit(tmp_path, estimator):
    whole = make_trainer(tmp_path / "whole", model=opening(estimator), updates=12)
    whole.run()
    assert whole.symbols > 12 * 3 * 4
    stopped = make_trainer(tmp_path / "parts", model=opening(estimator), updates=12)
    with pytest.raises(Interrupted):
        stopped.run(lambda row: setattr(stopped, "interrupted", True))
    resumed = make_trainer(tmp_path / "parts", model=opening(estimator), updates=12)
    resumed.run()
    assert 0 < stopped.update < resumed.update == 12
    for one, other in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(one, other)


def test_an_option_of_the_command_line(tmp_path, capsys):
    made = "train copy --bits 1 --hidden 4 --batch 4 --truncation 2 --max-length 3 --quiet".split()
    made += ["--updates", "3", "--open-cuts", "0.5", "--out", str(tmp_path / "run")]
    refused(capsys, made, "--update-steps must be --truncation 2; got sequence")
    assert main([*made, "--update-steps", "2", "--estimator", "none"]) == 0
    refused(capsys, [*made, "--update-steps", "2", "--estimator", "true"], "--open-cuts goes with")
