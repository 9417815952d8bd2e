"""Control: another row's prediction, or noise of its norm, is injected; all else is as without."""

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import assert_equal_runs, make_model, make_trainer
from strategies import assert_close, seeds
from torch import nn

from dnirnn import (
    LSTM,
    AutoScale,
    Control,
    LeastSquares,
    SyntheticGradient,
    Truncated,
    backward,
    cut,
)
from dnirnn.commands.cli import main
from dnirnn.tasks.copy import CopyOptions, build
from dnirnn.training.trainer import Interrupted


def predictor(kind: str, context: int = 0):
    torch.manual_seed(1)
    if kind == "least-squares":
        made = LeastSquares(6, scale=0.5, discount=0.25, solve_every=10**6).double()
        nn.init.normal_(made.weight)
        return made
    made = SyntheticGradient(6, scale=0.5, discount=0.5 if kind == "same" else 0.25).double()
    nn.init.normal_(made.layers[-1].weight)
    if kind == "auto":
        made = AutoScale(made)
        made.agreement.copy_(torch.tensor([3.0, 4.0]))
    return made


@given(
    predicted=st.sampled_from(["same", "other", "auto", "least-squares"]),
    kind=st.sampled_from(["another-row", "noise"]),
    rows=st.integers(2, 4),
    chunks=st.integers(1, 3),
    seed=seeds,
)
def test_what_is_injected_is_anothers_and_the_targets_are_its_own(predicted, kind, rows, chunks, seed):
    core = LSTM(2, 3).double()
    x = torch.randn(2 * chunks, rows, 2, dtype=torch.float64)
    targets, cuts = [], []
    for control in (False, True):
        g = predictor(predicted)
        scale = g.scale
        estimator = Control(g, kind) if control else g
        torch.manual_seed(seed)
        output, _, (one,) = Truncated(core, 2, estimator)(x, core.initial_state(rows))
        backward(output.square().sum(), [one], reduction="sum")
        cuts.append(one)
        targets.append([one.probe.grad, *(p.grad for p in g.parameters() if p.grad is not None)])
    assert_close(*targets)
    own, other = (one.synthetic for one in cuts)
    assert own.any() and not torch.allclose(own, other)
    assert_close(own.norm(dim=-1).sum(), other.norm(dim=-1).sum())
    if kind == "another-row":
        for row in range(rows):
            assert_close(other[:, row], scale * g(cuts[0].end[:, row - 1].detach()))
    else:
        assert_close(own.norm(dim=-1), other.norm(dim=-1))


def test_nothing_crosses_where_a_sequence_ends():
    core, control = LSTM(2, 3).double(), Control(predictor("same"))
    x, final = torch.randn(4, 3, 2, dtype=torch.float64), torch.tensor([True, False, False])
    _, _, (one,) = Truncated(core, 2, control)(x, core.initial_state(3), final=final)
    assert not one.synthetic[1, 0].any() and one.synthetic[1, 1].any()


def test_at_a_cut_that_is_none_of_time():
    control = Control(predictor("same"))
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    onward, one = cut(h, control)
    backward(onward.square().sum(), [one], reduction="sum")
    assert_close(h.grad, 0.5 * control(h).detach().roll(1, 0))


def test_a_run_with_noise_goes_on_to_the_bit(tmp_path):
    def trainer(folder):
        model = make_model("dni")
        inner = model.truncated.estimator
        model.truncated.estimator = Control(inner, "noise")
        return make_trainer(folder, model=model, updates=12, warm_up=3, ramp=2)

    trainer(tmp_path / "whole").run()
    stopped = trainer(tmp_path / "parts")
    with pytest.raises(Interrupted):
        stopped.run(lambda row: setattr(stopped, "interrupted", True))
    trainer(tmp_path / "parts").run()
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


def test_an_option_of_the_command_line(tmp_path, capsys):
    given = dict(bits=1, hidden=4, batch=4, truncation=2, max_length=3, context=("input",))
    made = build(CopyOptions(**given, scale="auto", reader=3, control="noise")).model.truncated.estimator
    assert isinstance(made, Control) and isinstance(made.estimator, AutoScale)
    assert (made.needs_context, made.context_size, made.kind) == (True, 2, "noise")
    words = "train copy --bits 1 --hidden 4 --batch 4 --truncation 2 --max-length 3 --quiet".split()
    words += ["--updates", "3", "--out", str(tmp_path), "--control", "another-row"]
    refused(capsys, [*words, "--auxiliary", "1"], "--control is of what is predicted")
    refused(capsys, [*words, "--estimator", "none"], "--control goes with")
    assert main(words) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows; got 1"):
        core = LSTM(2, 3).double()
        x = torch.randn(2, 1, 2, dtype=torch.float64)
        Truncated(core, 2, Control(predictor("same")))(x, core.initial_state(1))
    with pytest.raises(ValueError, match="kind must be one of another-row, noise; got 'x'"):
        Control(predictor("same"), "x")
    with pytest.raises(TypeError, match="estimator must be a dnirnn.GradientEstimator; got Control"):
        Control(Control(predictor("same")))
    with pytest.raises(ValueError, match="no auxiliary"):
        Control(SyntheticGradient(3, auxiliary=0.5))
    model = make_model("dni")
    model.truncated.estimator = Control(AutoScale(model.truncated.estimator))
    with pytest.raises(ValueError, match="AutoScale measures its own"):
        make_trainer("nowhere", model=model, updates=3, warm_up=1)
