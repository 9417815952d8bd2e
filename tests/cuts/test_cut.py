"""dnirnn.cut: the laws of a cut, in networks drawn whole."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import Net, Told, nets, random_estimator, truth, with_cuts
from strategies import assert_close, gradients
from torch import Tensor, nn

from dnirnn import Interface, SyntheticGradient, ZeroGradient, backward, cut


@given(net=nets())
def test_the_true_gradients_predicted_make_the_networks_own_gradients(net):
    parts, estimator = net.make(), Told()
    wanted, true = truth(net, parts)
    estimator.told = [*true, *true]  # predicted at every cut, then asked again by the regression
    loss, interfaces = with_cuts(net, parts, estimator)
    error = backward(loss, interfaces)["estimator_error"]
    assert_close(gradients(parts), wanted, 1e-13)
    assert_close([one.probe.grad[0] for one in interfaces], true, 1e-13)
    assert error < 1e-20


@given(net=nets())
def test_a_fresh_estimator_lets_nothing_through_a_cut(net):
    """The gradients are those of the same network with h.detach() at the cuts, bit for bit."""
    parts = net.make()
    net.run(parts, *net.data(), Tensor.detach).backward()
    plain = gradients(parts)
    for estimator in (SyntheticGradient(net.width, dtype=torch.float64), ZeroGradient()):
        parts.zero_grad()
        backward(*with_cuts(net, parts, estimator))
        assert all(map(torch.equal, gradients(parts), plain))


@given(net=nets())
def test_through_cuts_nothing_and_is_taught_the_truth(net):
    parts, estimator = net.make(), random_estimator(net.width)
    wanted, true = truth(net, parts)
    loss, interfaces = with_cuts(net, parts, estimator, through=True)
    error = backward(loss, interfaces)["estimator_error"]
    assert_close(gradients(parts), wanted, 1e-13)
    assert_close([one.probe.grad[0] for one in interfaces], true, 1e-13)
    each = [
        0.5 * (estimator(one.start[0]) - g).square().sum() / net.batch
        for one, g in zip(interfaces, true)
    ]
    assert_close(error, torch.stack(each).mean())


def by_hand(net: Net, parts, estimator) -> tuple[list[Tensor], list[Tensor]]:
    """What is added to the modules' gradients, and each cut's target, by definition.

    One product a cut: its own graph, from the cuts that it reads to itself, is differentiated alone.
    """
    probes: list[Tensor] = []
    sent: list[Tensor] = []

    def between(h: Tensor) -> Tensor:
        sent.append(h)
        probes.append(torch.zeros_like(h, requires_grad=True))
        return h.detach() + probes[-1]

    loss = net.run(parts, *net.data(), between)
    weights = list(parts.parameters())
    asked = [*weights, *probes]
    total = list(torch.autograd.grad(loss, asked, retain_graph=True, materialize_grads=True))
    for h in sent:
        predicted = estimator(h.detach()).detach()
        for knob, chosen in (
            (estimator.scale, slice(len(weights))),
            (estimator.discount, slice(len(weights), None)),
        ):
            more = torch.autograd.grad(
                h, asked[chosen], knob * predicted, retain_graph=True, allow_unused=True
            )
            total[chosen] = [t if m is None else t + m for t, m in zip(total[chosen], more)]
    return total[: len(weights)], total[len(weights) :]


@given(net=nets(), knobs=st.sampled_from([(1.0, 1.0), (0.5, 0.5), (1.0, 0.3), (0.3, 1.0), (0.5, 0.0)]))
def test_what_is_sent_and_what_is_taught_is_as_defined(net, knobs):
    parts, estimator = net.make(), random_estimator(net.width, *knobs)
    wanted, targets = by_hand(net, parts, estimator)
    loss, interfaces = with_cuts(net, parts, estimator)
    backward(loss, interfaces)
    assert_close(gradients(parts), wanted)
    assert_close([one.probe.grad[0] for one in interfaces], targets)
    error = sum(
        0.5 * (estimator(one.start[0]) - target).square().sum() / net.batch
        for one, target in zip(interfaces, targets)
    )
    assert_close(gradients(estimator), list(torch.autograd.grad(error, estimator.parameters())))


@given(net=nets(), copies=st.integers(2, 3), mean=st.booleans())
def test_units_a_batch_copied_or_meaned_changes_no_estimators_gradient(net, copies, mean):
    parts, estimator = net.make(), random_estimator(net.width)
    loss, interfaces = with_cuts(net, parts, estimator)
    backward(loss, interfaces)
    once, taught = gradients(parts), gradients(estimator)
    parts.zero_grad(), estimator.zero_grad()
    x, y = (part.repeat(copies, 1) for part in net.data())
    found: list[Interface] = []

    def between(h: Tensor) -> Tensor:
        onward, interface = cut(h, estimator)
        found.append(interface)
        return onward

    unit = 1 / len(x) if mean else 1.0
    backward(net.run(parts, x, y, between) * unit, found, unit)
    assert_close(gradients(estimator), taught)
    assert_close(gradients(parts), [g * copies * unit for g in once])


@given(net=nets())
def test_gradients_of_several_calls_are_gathered(net):
    parts, estimator = net.make(), random_estimator(net.width)
    both = nn.ModuleList([parts, estimator])
    backward(*with_cuts(net, parts, estimator))
    once = gradients(both)
    backward(*with_cuts(net, parts, estimator))
    assert_close(gradients(both), [2 * g for g in once])


@given(net=nets())
def test_without_gradients_it_is_the_identity(net):
    parts, estimator = net.make(), random_estimator(net.width)
    with torch.no_grad():
        loss, interfaces = with_cuts(net, parts, estimator)
        assert_close(loss, net.run(parts, *net.data(), lambda h: h), 0)
    assert all(one.synthetic is None and one.probe is None for one in interfaces)


@given(net=nets())
def test_a_deep_copy_learns_the_same_and_apart(net):
    both = nn.ModuleList([net.make(), random_estimator(net.width)])
    other = copy.deepcopy(both)
    backward(*with_cuts(net, *both))
    assert not any(parameter.grad is not None for parameter in other.parameters())
    backward(*with_cuts(net, *other))
    assert_close(gradients(other), gradients(both), 0)


def test_the_parts_between_cuts_compile():
    torch.manual_seed(0)
    below, above = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    estimator, x = random_estimator(4), torch.randn(5, 3, dtype=torch.float64)
    both, found = nn.ModuleList([below, above]), []
    for compiled in (False, True):
        both.zero_grad()
        one, two = (torch.compile(p, backend="aot_eager", fullgraph=True) if compiled else p for p in both)
        onward, interface = cut(one(x), estimator)
        backward(two(onward).square().sum(), [interface])
        found.append(gradients(both))
    assert_close(found[1], found[0])


def test_a_cut_without_rows_costs_nothing_and_fits_nothing():
    weight = torch.randn(3, 4, requires_grad=True)
    onward, interface = cut(torch.zeros(0, 3) @ weight, SyntheticGradient(4, (), 1.0, 1.0))
    found = backward(onward.sum(), [interface])
    assert found["estimator_error"] == 0 and not weight.grad.any()


def test_a_linear_estimator_is_fitted_in_its_own_dtype_inside_autocast():
    """backward belongs outside of autocast; inside it is no error, and the gradient as good."""
    estimator, h = SyntheticGradient(4, (), 1.0, 1.0), torch.randn(6, 4, requires_grad=True)
    nn.init.normal_(estimator.layers[0].weight)

    def found(inside):
        estimator.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            onward, interface = cut(h * 2, estimator)
            loss = onward.square().sum()
            if inside:
                backward(loss, [interface])
        if not inside:
            backward(loss, [interface])
        return [parameter.grad.clone() for parameter in estimator.parameters()]

    assert_close(found(True), found(False))
