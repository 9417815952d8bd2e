"""Decoupled: what steps when, on what; whose target meets which activations."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close
from torch import nn
from torch.nn import functional as F

from dnirnn import Decoupled, SyntheticGradient, ZeroGradient, backward

sgd = partial(torch.optim.SGD, lr=0.1)
PARAMETERS = dict(
    depth=st.integers(1, 4), width=st.integers(1, 4), rows=st.integers(1, 4), seed=st.integers(0, 99)
)


def build(depth, width, seed, knobs=(1.0, 1.0), classes=0, **how) -> Decoupled:
    """All of it random, in float64, with plain gradient descent."""
    torch.manual_seed(seed)
    modules = [
        nn.Sequential(nn.Linear(width, width), nn.Tanh()).double() for _ in range(depth)
    ]
    estimators = [
        SyntheticGradient(width, (), *knobs, context_size=classes, dtype=torch.float64)
        for _ in range(depth - 1)
    ]
    for estimator in estimators:
        nn.init.normal_(estimator.layers[0].weight, std=0.3)
    if how.get("synthetic_inputs"):
        how["synthetic_inputs"] = [nn.Linear(width, width).double() for _ in range(depth - 1)]
        how["synthetic_input_optimizers"] = [sgd(m.parameters()) for m in how["synthetic_inputs"]]
    else:
        how.pop("synthetic_inputs", None)
    optimizers = ([sgd(m.parameters()) for m in some] for some in (modules, estimators))
    return Decoupled(modules, estimators, F.mse_loss, *optimizers, **how)


def rows_of(width: int, rows: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, width, generator=generator, dtype=torch.float64).unbind()


def state(decoupled: Decoupled) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in decoupled.parameters()]


@given(**PARAMETERS, knobs=st.sampled_from([(1.0, 1.0), (1.0, 0.4)]))
def test_unlocked_is_lockstep_where_no_prediction_has_moved(depth, width, rows, seed, knobs):
    """Within one batch no module's step changes what another one does in it."""
    lockstep, unlocked = (
        build(depth, width, seed, knobs, update=update) for update in ("lockstep", "unlocked")
    )
    x, y = rows_of(width, rows, seed)
    for _ in range(3):
        found, other = lockstep.learn(x, y), unlocked.learn(x, y)
        assert found.keys() == other.keys()
        for key in found:
            assert_close(other[key], found[key])
        assert_close(state(unlocked), state(lockstep))


@given(**PARAMETERS)
def test_lockstep_is_cut_and_backward(depth, width, rows, seed):
    decoupled, plain = build(depth, width, seed), build(depth, width, seed)
    x, y = rows_of(width, rows, seed)
    decoupled.learn(x, y)
    output, interfaces = plain.interfaces(x)
    assert_close(output, plain(x), 0)
    backward(F.mse_loss(output, y), interfaces, 1 / rows)
    for optimizer in (*plain.optimizers, *plain.estimator_optimizers):
        optimizer.step()
    assert_close(state(decoupled), state(plain), 0)


@given(**PARAMETERS)
def test_a_module_steps_before_the_next_one_has_run(depth, width, rows, seed):
    decoupled, seen = build(depth, width, seed, update="unlocked"), []
    before = [[p.detach().clone() for p in part.parameters()] for part in decoupled.parts]

    def look(i: int, module: nn.Module, args: tuple) -> None:
        # What stepped when module i begins: all below it, none from it on.
        seen.append([
            any(not torch.equal(p, old) for p, old in zip(part.parameters(), kept))
            for part, kept in zip(decoupled.parts, before)
        ])  # fmt: skip

    for i, part in enumerate(decoupled.parts):
        part.register_forward_pre_hook(partial(look, i))
    decoupled.learn(*rows_of(width, rows, seed))
    for i, stepped in enumerate(seen):
        assert not any(stepped[i:])
        assert all(stepped[:i]) or not all(p.grad is None for p in decoupled.parameters())


class Last(nn.Module):
    """Keeps what it was called on."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, x):
        self.calls.append(x.detach().clone())
        return self.inner(x)


@given(
    **PARAMETERS, batches=st.integers(1, 8), probability=st.sampled_from([0.3, 0.7, 1.0]),
    classes=st.sampled_from([0, 2]),
)  # fmt: skip
def test_random_order_fits_each_target_to_its_own_activations(
    depth, width, rows, seed, batches, probability, classes
):
    """And gives each module what the one below last said, with the targets of those very rows."""
    decoupled = build(
        depth, width, seed, classes=classes, update="random", probability=probability
    )
    said: dict[int, tuple] = {}
    turn: dict = {}
    for i, estimator in enumerate(decoupled.estimators):
        fitted = estimator.accumulate

        def check(entered, target, *context, i=i, fitted=fitted, **more):
            h, y, told = said[i]
            assert torch.equal(entered, h)
            if classes:
                assert torch.equal(context[0], told)
            # The target is what module i + 1 sends back for these rows, by its weights at its turn.
            assert_close(target, turn[i + 1])
            return fitted(entered, target, *context, **more)

        estimator.accumulate = check
    inner = decoupled.learn_module

    def learn_module(i, x, y, context):
        if i > 0 and said.get(i - 1) is None:
            assert inner(i, x, y, context) == (None, None)
            return None, None
        h, y_, told = (x, y, context) if i == 0 else said[i - 1]
        given_ = h.detach().requires_grad_()
        out = decoupled.parts[i](given_)
        told = told if classes else None
        if i == depth - 1:
            loss = F.mse_loss(out, y_) * rows
            back = loss
        else:
            known = () if told is None else (told,)
            back = (out * decoupled.estimators[i](out.detach(), *known).detach()).sum()
        turn[i] = torch.autograd.grad(back, given_)[0]
        found = inner(i, x, y, context)
        if i < depth - 1:
            said[i] = (out.detach(), y_, told)
        return found

    decoupled.learn_module = learn_module
    for n in range(batches):
        x, y = rows_of(width, rows, seed + n)
        context = torch.randn(rows, classes, dtype=torch.float64) if classes else None
        decoupled.learn(x, y, context)


def test_a_module_steps_with_its_probability():
    decoupled = build(3, 2, 0, update="random", probability=0.25)
    parts = nn.ModuleList(Last(part) for part in decoupled.parts)
    decoupled.parts = parts
    x, y = rows_of(2, 2, 0)
    for _ in range(400):
        decoupled.learn(x, y)
    for part in parts:  # 100 expected, with a standard deviation of 8.7
        assert 60 < len(part.calls) < 140


@given(**PARAMETERS)
def test_synthetic_inputs_are_read_and_learn_what_came(depth, width, rows, seed):
    decoupled = build(depth, width, seed, update="unlocked", synthetic_inputs=True)
    decoupled.parts = nn.ModuleList(Last(part) for part in decoupled.parts)
    x, y = rows_of(width, rows, seed)
    models = [[p.detach().clone() for p in m.parameters()] for m in decoupled.synthetic_inputs]
    weights = [[p.detach().clone() for p in part.parameters()] for part in decoupled.parts]
    decoupled.learn(x, y)
    read = [part.calls[0] for part in decoupled.parts]
    # Each model was fitted once, before the module above it read it.
    assert_close(read, [x, *(model(x) for model in decoupled.synthetic_inputs)], 0)
    for i, (model, inputs) in enumerate(zip(decoupled.synthetic_inputs, read)):
        linear = weights[i]
        came = torch.tanh(F.linear(inputs, *linear))
        old = [p.requires_grad_() for p in models[i]]
        error = 0.5 * (F.linear(x, *old) - came).square().sum() / rows
        moved = [p - 0.1 * g for p, g in zip(old, torch.autograd.grad(error, old))]
        assert_close(list(model.parameters()), moved)


def test_random_order_with_synthetic_inputs_never_waits():
    """Nobody has said anything yet, and the last module steps all the same."""
    decoupled = build(3, 2, 0, update="random", synthetic_inputs=True)
    x, y = rows_of(2, 2, 0)
    before = decoupled.parts[2][0].weight.detach().clone()
    decoupled.learn_module(2, x, y, None)
    assert not torch.equal(decoupled.parts[2][0].weight, before)


def test_zero_gradient_and_optimizers_of_none():
    """Below a cut that sends nothing no module moves; the last one does."""
    torch.manual_seed(0)
    modules = [nn.Linear(2, 2).double() for _ in range(2)]
    for update in ("lockstep", "unlocked", "random"):
        decoupled = Decoupled(
            modules, [ZeroGradient()], F.mse_loss, [None, sgd(modules[1].parameters())], [None],
            update=update,
        )  # fmt: skip
        for _ in range(2):
            before = [m.weight.detach().clone() for m in modules]
            found = decoupled.learn(*rows_of(2, 3, 0))
            assert "estimator_error" not in found
        assert torch.equal(modules[0].weight, before[0])
        assert not torch.equal(modules[1].weight, before[1])


def test_what_was_last_said_goes_with_the_state_dict():
    one, other = (build(3, 2, 0, update="random", probability=0.5) for _ in range(2))
    for n in range(5):
        one.learn(*rows_of(2, 2, n))
    other.load_state_dict(one.state_dict())
    for decoupled in (one, other):
        torch.manual_seed(3)
        for n in range(5):
            decoupled.learn(*rows_of(2, 2, 10 + n))
    assert_close(state(one), state(other), 0)


def test_it_learns_in_every_way():
    """A target that a linear network reaches: the loss falls to a tenth, whatever waits for what."""
    generator = torch.Generator().manual_seed(1)
    goal = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    ways = [
        dict(update="lockstep"), dict(update="unlocked"), dict(update="random", probability=0.5),
        dict(update="unlocked", synthetic_inputs=True),
        dict(update="random", probability=0.5, synthetic_inputs=True),
    ]  # fmt: skip
    for how in ways:
        decoupled = build(2, 3, 0, **how)
        decoupled.parts = nn.ModuleList(part[0] for part in decoupled.parts)

        def loss() -> float:
            x, _ = rows_of(3, 256, 5)
            with torch.no_grad():
                return float(F.mse_loss(decoupled(x), torch.tanh(x @ goal)))

        before = loss()
        for n in range(1500):
            x, _ = rows_of(3, 16, 100 + n)
            decoupled.learn(x, torch.tanh(x @ goal))
        assert loss() < 0.35 * before, how


@pytest.mark.parametrize(
    ("how", "match"),
    [
        (dict(update="async"), "update must be one of"),
        (dict(update="random", probability=0.0), "probability must be positive"),
        (dict(probability=0.5), "probability goes with update random"),
        (dict(synthetic_inputs=True), "go with update unlocked or random"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(how, match):
    with pytest.raises(ValueError, match=match):
        build(3, 2, 0, **how)


def test_a_list_of_another_length_is_refused_by_name():
    with pytest.raises(ValueError, match="estimators must be 1, for 2 modules; got 0"):
        Decoupled([nn.Linear(2, 2)] * 2, [], F.mse_loss, [None] * 2, [None])
