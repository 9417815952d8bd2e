"""The horizon equals brute force, and the command says it of a run."""

import csv

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import make_model, text
from strategies import seeds

from dnirnn.commands.cli import main
from dnirnn.data import TextStream
from dnirnn.horizon import horizon, truncation_bias

problems = dict(
    steps=st.integers(2, 6),
    lookahead=st.integers(1, 7),
    final=st.booleans(),
    estimator=st.sampled_from(["none", "dni"]),
    seed=seeds,
)


def problem(steps, final, estimator, seed):
    model = make_model(estimator, truncation=3, seed=seed).double().eval()
    batch = TextStream(text(3 * (steps + 2), seed), 3, 0).next(steps)
    return model, batch._replace(final=final)


def uncut(model, batch, row, cut_every=None, start=0, steps=None, state=None):
    """(the states that steps start from, the nats of each), by a loop over core.step."""
    core, states, nats = model.truncated.core, [], []
    state = core.initial_state(1) if state is None else state
    for i in range(start, len(batch.x) if steps is None else start + steps):
        if cut_every and i % cut_every == 0:
            state = state.detach()
        states.append(state)
        output, state = core.step(model.encoder(batch.x[i, row : row + 1]), state, i)
        nats.append(model.loss(model.readout(output)[None], batch.y[i : i + 1, row : row + 1]).sum())
    return states, nats


@given(**problems)
def test_equals_the_gradients_of_the_next_steps_one_by_one(
    steps, lookahead, final, estimator, seed
):
    model, batch = problem(steps, final, estimator, seed)
    count = steps if final else steps + 1 - lookahead
    if count < 1:
        with pytest.raises(ValueError, match=f"lookahead={lookahead} steps; got {steps}"):
            horizon(model, batch, lookahead)
        return
    found = horizon(model, batch, lookahead)
    reach = min(lookahead, steps)
    assert [one.steps for one in found.reaches] == sorted({1, 2, 4, 8, reach} & {*range(reach + 1)})
    assert found.positions == 3 * count

    def gradient(position, row, span):
        start = uncut(model, batch, row)[0][position].detach().requires_grad_()
        span = min(span, steps - position)
        _, nats = uncut(model, batch, row, start=position, steps=span, state=start)
        return torch.autograd.grad(sum(nats), start)[0][0]

    cells = [(position, row) for position in range(count) for row in range(3)]
    whole = torch.stack([gradient(*cell, reach) for cell in cells])
    assert found.norms[2] == pytest.approx(whole.norm(dim=1).max().item(), abs=1e-12)
    for one in found.reaches:
        part = torch.stack([gradient(*cell, one.steps) for cell in cells])
        for named, values in (
            (one.cosine, (part * whole).sum(1) / (part.norm(dim=1) * whole.norm(dim=1))),
            (one.norm_ratio, part.norm(dim=1) / whole.norm(dim=1)),
        ):
            low, high = torch.quantile(values, torch.tensor([0.25, 0.75]).double()).tolist()
            assert named == pytest.approx((low, values.mean().item(), high), abs=1e-10)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.truncated.truncation == 3


@given(
    truncation=st.integers(1, 7),
    **{name: drawn for name, drawn in problems.items() if name not in ("lookahead", "final")},
)
def test_the_bias_is_that_of_a_loop_cut_by_hand(steps, truncation, estimator, seed):
    model, batch = problem(steps, False, estimator, seed)
    parameters = model.core_parameters()

    def row_gradient(row, cut_every):
        nats = sum(uncut(model, batch, row, cut_every)[1])
        found = torch.autograd.grad(nats, parameters, materialize_grads=True, allow_unused=True)
        return torch.cat([one.flatten() for one in found])

    whole = torch.stack([row_gradient(row, None) for row in range(3)])
    cut = torch.stack([row_gradient(row, truncation) for row in range(3)])
    missed, noise = cut - whole, cut.var(0).sum() / 3
    square = missed.mean(0).square().sum() - missed.var(0).sum() / 3
    bias = max(0.0, float(square)) ** 0.5
    (found,) = truncation_bias(model, batch, [truncation])
    # A root of what rounding leaves of a difference: half the digits.
    assert found.bias == pytest.approx(bias / float(whole.mean(0).norm()), abs=1e-6)
    assert found.bias_to_noise == pytest.approx(bias / float(noise) ** 0.5, abs=1e-6)
    if truncation >= steps:
        assert found.bias == 0


def test_what_does_not_fit_is_refused():
    model, batch = problem(4, False, "none", 0)
    for wrong in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"lookahead must be .*; got {wrong}"):
            horizon(model, batch, wrong)
    with pytest.raises(ValueError, match="at least 2 rows, to know their noise; got 1"):
        truncation_bias(model, batch.rows(0, 1), [2])


@pytest.mark.parametrize("estimator", ["none", "dni"])
def test_the_command(tmp_path, capsys, estimator):
    run = tmp_path / "run"
    made = "--bits 1 --hidden 4 --batch 4 --truncation 2 --max-length 3 --quiet --updates 4".split()
    assert main(["train", "copy", *made, "--estimator", estimator, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["horizon", str(run), "--lookahead", "4", "--weights", "latest"]) == 0
    said = capsys.readouterr().out
    assert "the gradient of the next 4" in said and "<- this run's" in said
    with (run / "horizon.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["1", "2", "4"]
    assert float(rows[-1]["cosine"]) == pytest.approx(1)
    assert (run / "horizon.png").stat().st_size
    refused(capsys, ["horizon", str(run), "--lookahead", "0"], "lookahead")
