"""A core's parameters are its attributes of the moment, whatever put them there; its hooks run."""

import copy

import pytest
import torch
from strategies import Fitting, assert_close, gradients
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    Clockwork,
    Deep,
    Every,
    FastSlow,
    FromTorch,
    Hierarchy,
    Skip,
    SyntheticGradient,
    Truncated,
    WeightDrop,
    ZeroGradient,
    backward,
)

X = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reference(core, x=X, truncation=6):
    """(outputs, last state) of the loop over step."""
    outputs, state = [], core.initial_state(x.shape[1])
    for t, x_BI in enumerate(x):
        output, state = core.step(x_BI, state, t)
        outputs.append(output)
    return torch.stack(outputs), state


def unrolled(core, x=X, truncation=2, **knobs):
    """(outputs, last state, cuts) inside a Truncated whose estimator says something."""
    estimator = SyntheticGradient(core.state_size, **knobs).double()
    torch.manual_seed(1)
    nn.init.normal_(estimator.layers[-1].weight, std=0.3)
    return Truncated(core, truncation, estimator)(x, core.initial_state(x.shape[1]))


KINDS = {
    "lstm": (lambda: LSTM(3, 4, 2), "", "weight_hh_l1"),
    "gru": (lambda: GRU(3, 4), "module", "weight_hh_l0"),
    "rnn": (lambda: RNN(3, 4, 2), "module", "weight_ih_l1"),
    "from torch": (lambda: FromTorch(nn.LSTM(3, 4)), "module", "weight_hh_l0"),
    "deep": (lambda: Deep([LSTM(3, 4), LSTM(4, 4)]), "cores.1", "weight_hh_l0"),
    "every": (lambda: Every(LSTM(3, 4), 2), "core", "weight_hh_l0"),
    "clockwork": (lambda: Clockwork(3, 4, (1, 2), "lstm"), "parts.0", "weight_ih_l0"),
    "clockwork rnn": (lambda: Clockwork(3, 4, (1, 2)), "parts.1.module", "weight_hh_l0"),
    "skip": (lambda: Skip(LSTM(3, 4)), "core", "weight_hh_l0"),
    "weight drop": (lambda: WeightDrop(LSTM(3, 4), 0.3).eval(), "core", "weight_ih_l0"),
    "hierarchy": (lambda: Hierarchy(LSTM(3 + 2, 4), LSTM(4, 2), 2), "slow", "weight_hh_l0"),
}


@pytest.fixture(params=KINDS)
def kind(request, path):
    """(core, the module that holds a weight, the weight's name)."""
    make, where, name = KINDS[request.param]
    torch.manual_seed(0)
    core = make().double()
    return core, core.get_submodule(where), name


def check(core, expected, **knobs):
    output, state, cuts = unrolled(core, **knobs)
    assert_close(output, expected[0])
    assert_close(state, expected[1])
    backward(output.square().sum(), cuts, reduction="sum")


def plain_copy(core, holder, name, weight):
    """A copy of the core as it was, with another weight there."""
    where = next(path for path, module in core.named_modules() if module is holder)
    other = copy.deepcopy(core)
    with torch.no_grad():
        getattr(other.get_submodule(where), name).copy_(weight)
    return other


@pytest.mark.parametrize("knobs", [{}, dict(dense=True), dict(trace_decay=0.5)], ids=str)
def test_pruning(kind, knobs):
    core, holder, name = kind
    weight = getattr(holder, name).detach().clone()
    mask = torch.arange(weight.numel()).view_as(weight) % 2
    expected = reference(plain_copy(core, holder, name, weight * mask))
    prune.custom_from_mask(holder, name, mask)
    for _ in range(2):  # what pruning computes is of one update: the next one needs it anew
        check(core, expected, **knobs)
        found = holder.get_parameter(f"{name}_orig").grad
        assert found.any() and not found[mask == 0].any()
    with torch.no_grad():
        holder.get_parameter(f"{name}_orig").mul_(2)
    assert not torch.equal(unrolled(core)[0], expected[0])


@pytest.mark.parametrize(
    "parametrise",
    [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm],
)
def test_parametrisations(kind, parametrise):
    core, holder, name = kind
    plain = copy.deepcopy(core)
    parametrise(holder, name)
    core.eval()  # a spectral norm's power iteration goes on at every look in training
    where = next(path for path, module in core.named_modules() if module is holder)
    with torch.no_grad():
        getattr(plain.eval().get_submodule(where), name).copy_(getattr(holder, name))
    check(core, reference(plain))
    originals = holder.parametrizations[name].parameters()
    assert all(p.grad is not None and p.grad.any() for p in originals)


def test_a_parameter_replaced_or_a_view(kind):
    core, holder, name = kind
    weight = 0.5 * torch.randn_like(getattr(holder, name))
    expected = reference(plain_copy(core, holder, name, weight))
    delattr(holder, name)
    setattr(holder, name, nn.Parameter(weight.clone()))
    check(core, expected)
    whole = nn.Parameter(torch.stack([weight, weight], -1))
    delattr(holder, name)
    setattr(holder, name, whole[..., 1])
    check(core, expected)
    assert whole.grad[..., 1].any() and not whole.grad[..., 0].any()


def test_functional_call(kind):
    core, holder, name = kind
    truncated = Truncated(core, 2, ZeroGradient())
    where = next(path for path, part in truncated.named_modules() if part is holder)
    weight = 0.5 * torch.randn_like(getattr(holder, name))
    weight.requires_grad_()
    expected = reference(plain_copy(core, holder, name, weight))
    output, state, _ = functional_call(
        truncated, {f"{where}.{name}": weight}, (X, core.initial_state(2), 0)
    )
    assert_close(output, expected[0])
    assert_close(state, expected[1])
    output.square().sum().backward()
    assert weight.grad.any() and getattr(holder, name).grad is None


def test_layers_are_found_by_their_names():
    """Layer 0's weight, deleted and set again, stands behind layer 1's: the layers stay."""
    core = LSTM(4, 4, 2).double()
    x = torch.randn(6, 2, 4).double()
    expected = core(x, core.initial_state(2))
    for name, weight in list(core.named_parameters())[:4]:
        delattr(core, name)
        setattr(core, name, nn.Parameter(weight.detach().clone()))
    assert_close(core(x, core.initial_state(2))[0], expected[0])


def test_weights_shared_between_layers_and_parts(path):
    deep = LSTM(4, 4, 2).double()
    deep.weight_hh_l1 = deep.weight_hh_l0
    clockwork = Clockwork(3, 8, (1, 2), "lstm").double()
    clockwork.parts[1].weight_hh_l0 = clockwork.parts[0].weight_hh_l0
    for core, size in ((deep, 4), (clockwork, 3)):
        x = torch.randn(6, 2, size).double()
        expected = reference(core, x)
        wanted = torch.autograd.grad(expected[0].square().sum(), list(core.parameters()))
        output, _ = core(x, core.initial_state(2))
        assert_close(output, expected[0])
        assert_close(torch.autograd.grad(output.square().sum(), list(core.parameters())), wanted)


# Hooks.


def test_hooks_run_once_a_chunk(kind):
    core, holder, _ = kind
    calls = []
    plain = unrolled(core)[0]
    handles = [
        core.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0].shape[0])),
        core.register_forward_hook(lambda module, arguments, found: (2 * found[0], found[1])),
    ]
    output, _, cuts = unrolled(core)
    assert calls == [2, 2, 2]
    assert_close(output, 2 * plain)
    for handle in handles:
        handle.remove()
    assert_close(unrolled(core)[0], plain)


def test_hooks_of_parts_run(kind):
    core, holder, _ = kind
    calls = []
    holder.register_forward_hook(lambda *_: calls.append(0))
    expected = reference(core)
    calls.clear()
    output, _, cuts = unrolled(core)
    assert calls
    assert_close(output, expected[0])


def test_hooks_that_cannot_run_are_refused():
    core = FastSlow(3, 4, 2)
    core.slow.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="slow.*hook"):
        core(torch.randn(2, 2, 3), core.initial_state(2))


# Estimators likewise.


@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize("way", ["prune", "weight norm"])
def test_an_estimator_is_fitted_whatever_holds_its_weights(path, hidden, way):
    torch.manual_seed(0)
    core = LSTM(3, 4).double()
    plain = Fitting(hidden, 0.5, 0.5, 1).estimator(core)
    other = copy.deepcopy(plain)
    layer = other.layers[0]
    if way == "prune":
        prune.custom_from_mask(layer, "weight", torch.ones_like(layer.weight))
    else:
        parametrizations.weight_norm(layer, "weight")
    found = []
    for estimator in (plain, other):
        core.zero_grad()
        for _ in range(2):
            output, _, cuts = Truncated(core, 2, estimator)(X, core.initial_state(2))
            error = backward(output.square().sum(), cuts, reduction="sum")["estimator_error"]
        found.append((error, gradients(core), estimator.layers[0].bias.grad))
    assert_close(found[1], found[0])
    held = layer.weight_orig if way == "prune" else layer.parametrizations.weight.original0
    assert held.grad is not None and held.grad.any()


@pytest.mark.parametrize("knobs", [{}, dict(hidden=(5,), auxiliary=0.5), dict(normalise=True)], ids=str)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_estimator_is_fitted_where_functional_call_put_its_tensors(path, knobs, micro_batches):
    torch.manual_seed(0)
    core = LSTM(3, 4).double()
    truncated = Truncated(core, 2, SyntheticGradient(8, scale=0.5, discount=0.3, **knobs).double())

    def update(call):
        output, _, cuts = call(X, core.initial_state(2))
        backward(output.square().sum(), cuts, reduction="sum", micro_batches=micro_batches)

    expected = copy.deepcopy(truncated)
    for _ in range(2):
        update(expected)
    entries = dict(truncated.named_parameters()) | dict(truncated.named_buffers())
    given = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in entries.items()}
    for _ in range(2):
        update(lambda *arguments: functional_call(truncated, given, arguments))
    assert all(p.grad is None for p in truncated.parameters())
    for name, parameter in expected.named_parameters():
        assert_close(given[name].grad, parameter.grad)
    for name, buffer in expected.named_buffers():
        assert_close(given[name], buffer)


def test_an_estimator_is_not_given_tensors_that_are_computed():
    truncated = Truncated(LSTM(3, 4).double(), 2, SyntheticGradient(8).double())
    given = {"estimator.layers.0.bias": 2 * torch.zeros(8, dtype=torch.float64, requires_grad=True)}
    output, _, cuts = functional_call(truncated, given, (X, truncated.core.initial_state(2)))
    with pytest.raises(ValueError, match="functional_call.*leaves"):
        backward(output.square().sum(), cuts, reduction="sum")
    assert all(p.grad is None for p in truncated.parameters())
