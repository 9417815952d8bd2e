"""Warm-up: fitted before it is used, then ramped in; gradients scaled into a range of norms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import assert_equal_runs, make_model, make_trainer
from torch import nn

from dnirnn import BPLambda, SyntheticGradient
from dnirnn.training.optimizers import ramped, rescale
from dnirnn.training.trainer import Interrupted, NonFinite, TrainerConfig

PLAIN = dict(optimizer="SGD", estimator_optimizer="SGD", lr=0.1, estimator_lr=0.1, clip=None)


def train(folder, **config):
    trainer = make_trainer(folder, evaluate=config.pop("evaluate", None), **config)
    trainer.run()
    return trainer


def assert_same_core(one, other):
    for a, b in zip(one.model.core_parameters(), other.model.core_parameters(), strict=True):
        assert torch.equal(a, b)


def test_while_it_warms_up_the_core_learns_as_without_it(tmp_path):
    plain = train(tmp_path / "none", model=make_model("none"), updates=9)
    model = make_model("dni")
    model.load_state_dict(make_model("none").state_dict(), strict=False)
    fitted = [p.clone() for p in model.estimator_parameters()]
    warm = train(tmp_path / "warm", model=model, updates=9, warm_up=9)
    assert_same_core(warm, plain)
    assert not any(torch.equal(a, b) for a, b in zip(fitted, model.estimator_parameters()))


def test_it_is_fitted_to_the_targets_that_it_has_with_its_whole_scale(tmp_path):
    """The first update's regression does not depend on what is injected."""
    found = []
    for name, options in (("at once", dict()), ("warm", dict(warm_up=5))):
        trainer = train(tmp_path / name, model=make_model().double(), updates=1, **options, **PLAIN)
        found.append([p.detach().clone() for p in trainer.model.estimator_parameters()])
    torch.testing.assert_close(*found)


def test_the_scale_rises_in_equal_steps():
    assert [ramped(u, 2, 3) for u in range(7)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [ramped(u, 0, 0) for u in range(3)] == [1, 1, 1]
    assert [ramped(u, 2, 0) for u in range(4)] == [0, 0, 1, 1]
    assert [ramped(u, 0, 1) for u in range(3)] == [0.5, 1, 1]


def test_the_scale_follows_it_and_is_given_back(tmp_path):
    trainer = make_trainer(tmp_path, updates=4, warm_up=2, ramp=3, evaluate=None)
    estimator, seen = trainer.model.truncated.estimator, []
    forward = trainer.model.forward
    trainer.model.forward = lambda *args: seen.append(estimator.scale) or forward(*args)
    trainer.run()
    assert seen == [0.5 * share for share in (0, 0, 0.25, 0.5)]
    assert estimator.scale == 0.5


def run_in_two(folder, make, stop):
    """Two runs: one stopped after ``stop`` updates and resumed, and one that goes through."""
    trainer = make(folder / "halves")

    def press(row):
        trainer.interrupted = row["update"] == stop

    with pytest.raises(Interrupted):
        trainer.run(press)
    for name in ("halves", "whole"):
        make(folder / name).run()
    assert_equal_runs(folder / "halves", folder / "whole")


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_resumed_run_ramps_on(tmp_path, stop):
    options = dict(updates=9, warm_up=2, ramp=3, evaluate=None, log_every=1)
    run_in_two(tmp_path, lambda folder: make_trainer(folder, **options), stop)


def test_without_an_estimator_there_is_nothing_to_warm_up(tmp_path):
    for options in (dict(warm_up=2), dict(ramp=2), dict(estimator_min_norm=0.1)):
        with pytest.raises(ValueError, match="need an estimator that is fitted"):
            make_trainer(tmp_path, model=make_model("none"), updates=1, **options)


# Norms


@given(
    norm=st.floats(1e-3, 1e3),
    smallest=st.none() | st.floats(1e-2, 1),
    largest=st.none() | st.floats(1, 1e2),
)
def test_rescaling_keeps_the_direction_and_bounds_the_norm(norm, smallest, largest):
    torch.manual_seed(0)
    gradients = [torch.randn(3, 2).double(), torch.randn(4).double()]
    whole = torch.cat([g.flatten() for g in gradients])
    for g in gradients:
        g.mul_(norm / whole.norm())
    rescale(gradients, norm, smallest, largest)
    found = torch.cat([g.flatten() for g in gradients])
    expected = min(max(norm, smallest or 0), largest or float("inf"))
    torch.testing.assert_close(found, whole * expected / whole.norm())


def test_a_gradient_of_zero_stays_zero():
    gradients = [torch.zeros(3)]
    rescale(gradients, 0.0, 0.5, 1.0)
    assert not gradients[0].any()


@pytest.mark.parametrize("part", ["core", "estimator"])
def test_min_norm_is_of_each_part_s_own_gradient(tmp_path, part):
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    min_norm = {"core": "min_norm", "estimator": "estimator_min_norm"}[part]
    train(tmp_path, model=model, updates=1, **(PLAIN | {min_norm: 1e3}))
    moved = {"core": 0.0, "estimator": 0.0}
    for name, value in model.state_dict().items():
        kind = "estimator" if "estimator" in name else "core"
        moved[kind] += (value - before[name]).double().square().sum().item()
    assert moved[part] ** 0.5 == pytest.approx(0.1 * 1e3, rel=1e-3)
    assert moved["core" if part == "estimator" else "estimator"] ** 0.5 < 10


@pytest.mark.parametrize("options, says", [
    (dict(warm_up=-1), "warm_up must be at least 0; got -1"),
    (dict(ramp=0.5), "ramp must be an int of at least 0; got 0.5"),
    (dict(min_norm=-1.0), "min_norm must be at least 0; got -1.0"),
    (dict(min_norm=2.0, clip=1.0), "min_norm must be at most clip, 1.0; got 2.0"),
    (dict(estimator_min_norm=2.0, estimator_clip=1.0), "estimator_min_norm must be at most estimator_clip"),
    (dict(fidelity_every=0), "fidelity_every must be at least 1; got 0"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        TrainerConfig(updates=1, **options)


# What else of an estimator a run keeps: its buffers


def stateful(kind):
    model = make_model()
    if kind == "trace":
        model.truncated.estimator = BPLambda(10, 4, trace_decay=0.9, discount=0.9)
    else:
        normalised = SyntheticGradient(10, (6,), normalise=True, auxiliary=0.5)
        nn.init.normal_(normalised.layers[-1].weight, std=0.1)
        model.truncated.estimator = normalised
    return model


@pytest.mark.parametrize("kind", ["trace", "normalise"])
def test_a_run_with_state_in_its_estimator_resumes_to_the_bit(tmp_path, kind):
    options = dict(updates=11, chunks=2, evaluate=None, log_every=1)
    run_in_two(tmp_path, lambda folder: make_trainer(folder, model=stateful(kind), **options), 5)


@pytest.mark.parametrize("kind", ["trace", "normalise"])
def test_an_update_that_is_refused_leaves_the_estimator_s_state_as_it_was(tmp_path, kind):
    model = stateful(kind)
    trainer = make_trainer(tmp_path, model=model, updates=9, evaluate=None)
    forward, buffers, kept = model.forward, list(model.truncated.estimator.buffers()), []

    def poisoned(batch, state, t):
        kept[:] = [buffer.clone() for buffer in buffers]
        nats, ended, cuts = forward(batch, state, t)
        return nats * (float("nan") if trainer.update == 4 else 1.0), ended, cuts

    model.forward = poisoned
    with pytest.raises(NonFinite):
        trainer.run()
    assert buffers[0].any() and all(torch.equal(a, b) for a, b in zip(buffers, kept))
