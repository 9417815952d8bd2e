"""dnirnn.cut: the laws of a cut, in networks drawn whole: depth, widths, branches, loops, reuse."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, gradients
from torch import Tensor, nn

from dnirnn import (
    LSTM,
    BPLambda,
    ConvSyntheticGradient,
    GradientEstimator,
    Interface,
    LeastSquares,
    SyntheticGradient,
    Truncated,
    ZeroGradient,
    backward,
    cut,
    receive,
    send,
)


class Told(GradientEstimator):
    """Says what it was told, call by call; then it says zeros."""

    def __init__(self):
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, state: Tensor) -> Tensor:
        return self.told.pop(0).view(state.shape) if self.told else torch.zeros_like(state)

    def accumulate(self, entered: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (self(entered) - target).square().sum() / len(entered)


@dataclass(frozen=True)
class Net:
    """A network drawn whole. Each place reads earlier ones (their sum): a graph that branches and
    meets. parts: which module a place calls; several may call one. cuts: the places that are cut.
    loops: how often a place calls its module on itself, each time cut where it is."""

    parts: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    cuts: tuple[bool, ...]
    loops: tuple[int, ...]
    width: int
    batch: int
    seed: int

    def make(self) -> nn.ModuleList:
        torch.manual_seed(self.seed)
        layer = lambda: nn.Sequential(nn.Linear(self.width, self.width), nn.Tanh())  # noqa: E731
        return nn.ModuleList(layer() for _ in range(max(self.parts) + 1)).double()

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (2, self.batch, self.width)
        return torch.randn(shape, generator=generator, dtype=torch.float64).unbind()

    def run(self, parts, x, y, between) -> Tensor:
        """The summed loss; ``between(h)`` is called at every cut, and says what is read after it."""
        said = [x]
        for part, reads, is_cut, loops in zip(self.parts, self.reads, self.cuts, self.loops):
            h = sum(said[place] for place in reads)
            for _ in range(loops):
                h = parts[part](h)
                h = between(h) if is_cut else h
            said.append(h)
        # Every place counts in the loss: none is left out of it.
        return sum((parts[0](h) - y).square().sum() for h in said[1:])


@st.composite
def nets(draw) -> Net:
    places = draw(st.integers(1, 5))
    parts = tuple(draw(st.integers(0, 2)) for _ in range(places))
    reads = tuple(
        tuple(draw(st.sets(st.integers(0, place), min_size=1, max_size=3)))
        for place in range(places)
    )
    cuts = [draw(st.booleans()) for _ in range(places)]
    cuts[draw(st.integers(0, places - 1))] = True
    loops = tuple(draw(st.integers(1, 2)) for _ in range(places))
    sizes = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 999))
    return Net(parts, reads, tuple(cuts), loops, *sizes)


def with_cuts(net: Net, parts, estimator, **how) -> tuple[Tensor, list[Interface]]:
    found: list[Interface] = []

    def between(h: Tensor) -> Tensor:
        onward, interface = cut(h, estimator, **how)
        assert torch.equal(onward, h)
        found.append(interface)
        return onward

    return net.run(parts, *net.data(), between), found


def truth(net: Net, parts) -> tuple[list[Tensor], list[Tensor]]:
    """Backpropagation's gradients of the parameters, and, by hooks, of what is read at each cut."""
    caught: dict[int, Tensor] = {}

    def between(h: Tensor) -> Tensor:
        place = len(caught)
        caught[place] = torch.zeros_like(h)
        h = h.clone()
        h.register_hook(lambda gradient: caught.__setitem__(place, gradient.clone()))
        return h

    parts.zero_grad()
    net.run(parts, *net.data(), between).backward()
    found = gradients(parts)
    parts.zero_grad()
    return found, list(caught.values())


def random_estimator(width: int, scale=1.0, discount=1.0, hidden=(), **more) -> SyntheticGradient:
    estimator = SyntheticGradient(width, hidden, scale, discount, dtype=torch.float64, **more)
    for parameter in estimator.parameters():
        nn.init.normal_(parameter, std=0.3)
    return estimator


# The laws


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
        0.5 * (estimator(one.entered[0]) - g).square().sum() / net.batch
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
        0.5 * (estimator(one.entered[0]) - target).square().sum() / net.batch
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


# Send and receive: the same without waiting


@given(net=nets(), knobs=st.sampled_from([(1.0, 1.0), (1.0, 0.3)]))
def test_sent_at_once_and_received_when_it_comes_it_is_the_same(net, knobs):
    # Cut everywhere, so that no two of what sends share a part of the graph.
    net = replace(net, cuts=(True,) * len(net.cuts))
    parts, estimator = net.make(), random_estimator(net.width, *knobs)
    both = nn.ModuleList([parts, estimator])
    backward(*with_cuts(net, parts, estimator))
    wanted = gradients(both)
    both.zero_grad()
    loss, interfaces = with_cuts(net, parts, estimator)
    for i, one in enumerate(interfaces):
        others = interfaces[:i] + interfaces[i + 1 :]
        send(one, others)
    for one in interfaces:
        one.probe.reached = True
    loss.backward()
    errors = [receive(one) for one in interfaces]
    assert_close(gradients(both), wanted)
    assert all(error.isfinite() for error in errors)


# Shapes and kinds


def test_every_vector_of_a_row_is_a_row_of_the_regression_and_is_told_the_rows_context():
    torch.manual_seed(0)
    estimator = random_estimator(3, context_size=2)
    h = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(4, 2, dtype=torch.float64)
    onward, interface = cut(h, estimator, context)
    told = context[:, None].expand(-1, 5, -1)
    assert_close(interface.synthetic[0], estimator(h.detach(), told))
    backward(onward.square().sum(), [interface])
    assert_close(h.grad, estimator(h.detach(), told))
    error = 0.5 * (estimator(h.detach(), told) - 2 * h.detach()).square().sum() / 20
    assert_close(gradients(estimator), list(torch.autograd.grad(error, estimator.parameters())))


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    hidden=st.sampled_from([(), (3,)]),
    classes=st.sampled_from([0, 2]),
    normalise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_maps(shape, hidden, classes, normalise, seed):
    torch.manual_seed(seed)
    estimator = ConvSyntheticGradient(
        shape[1], hidden, kernel_size=3, context_size=classes, normalise=normalise,
        dtype=torch.float64,
    )  # fmt: skip
    h = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    context = torch.randn(len(h), classes, dtype=torch.float64) if classes else None
    onward, interface = cut(h, estimator, context)
    assert interface.synthetic.count_nonzero() == 0
    for parameter in estimator.parameters():
        nn.init.normal_(parameter, std=0.3)
    onward, interface = cut(h, estimator, context)
    error = backward(onward.square().sum(), [interface])["estimator_error"]
    assert_close(h.grad, interface.synthetic[0])
    target = 2 * h.detach()
    # In units of the targets' size, which is 1 fit old here: their own RMS.
    unit = target.square().mean().sqrt() if normalise else 1.0
    told = () if context is None else (context,)
    expected = 0.5 * (estimator(h.detach(), *told) - target).square().sum() / len(h)
    assert_close(error, expected)
    wanted = torch.autograd.grad(expected / unit**2, estimator.parameters())
    if not normalise:
        assert_close(gradients(estimator), list(wanted))


def test_a_solved_estimator_serves_too():
    torch.manual_seed(0)
    estimator = LeastSquares(3, scale=1.0, discount=1.0, solve_every=1, dtype=torch.float64)
    h = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    onward, interface = cut(h, estimator)
    backward(onward.square().sum(), [interface])
    _, interface = cut(h, estimator)
    assert_close(interface.synthetic[0], 2 * h.detach(), 0.05)


def test_half_precision_is_predicted_for_in_float32():
    h = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    estimator = SyntheticGradient(3, (), 1.0, 1.0)
    nn.init.normal_(estimator.layers[0].bias)
    onward, interface = cut(h, estimator)
    assert onward.dtype == torch.bfloat16 and interface.synthetic.dtype == torch.float32
    backward(onward.float().square().sum(), [interface])
    assert interface.probe.grad.dtype == torch.float32
    assert torch.equal(h.grad, interface.synthetic[0].to(torch.bfloat16))


def test_nothing_below_that_learns_is_no_trouble():
    estimator = random_estimator(3)
    onward, interface = cut(torch.randn(4, 3, dtype=torch.float64), estimator)
    error = backward(onward.square().sum(), [interface])["estimator_error"]
    assert error > 0 and estimator.layers[0].weight.grad.count_nonzero()


def test_cuts_of_time_and_of_depth_share_one_backward():
    """encoder, cut, an LSTM cut in time: the encoder hears of the future through both."""
    torch.manual_seed(0)
    encoder, core = nn.Linear(2, 3).double(), LSTM(3, 4).double()
    deep, time = random_estimator(3), random_estimator(core.state_size, 0.5, 0.5)
    x = torch.randn(6, 2, 2, dtype=torch.float64)
    onward, interface = cut(encoder(x), deep)
    output, _, cuts = Truncated(core, 2, time)(onward, core.initial_state(2))
    loss = output.square().sum()
    asked = [*encoder.parameters()]
    wanted = torch.autograd.grad(interface.sent, asked, interface.synthetic, retain_graph=True)
    backward(loss, [*cuts, interface])
    assert_close(gradients(encoder), list(wanted))
    assert interface.probe.grad.abs().sum() > 0 and time.layers[0].weight.grad is not None


def test_a_chain_of_estimators_learns_from_its_last_link():
    """Linear layers: each estimator is exact once the one above is, and the lowest only then."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4)).double()
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    estimators = nn.ModuleList(random_estimator(3) for _ in range(3))
    optimizer = torch.optim.SGD(estimators.parameters(), lr=0.3)

    def run(through: bool):
        h, found = torch.randn(64, 3, dtype=torch.float64), []
        for layer, estimator in zip(layers, estimators):
            h, interface = cut(layer(h), estimator, through=through)
            found.append(interface)
        return layers[-1](h).square().sum(), found

    for _ in range(600):
        backward(*run(through=False))
        optimizer.step(), optimizer.zero_grad()
    loss, found = run(through=True)
    backward(loss, found)
    for estimator, one in zip(estimators, found):
        assert_close(estimator(one.entered), one.probe.grad, 1e-3)


# Wrong use


def test_an_interface_given_twice_is_an_error():
    onward, interface = cut(torch.randn(2, 3, requires_grad=True), SyntheticGradient(3))
    with pytest.raises(ValueError, match="twice"):
        backward(onward.sum(), [interface, interface])


def test_one_forgotten_is_an_error():
    for kept in ([0], [1], []):
        onward, first = cut(torch.randn(2, 3, requires_grad=True), SyntheticGradient(3))
        onward, second = cut(onward * 2, SyntheticGradient(3))
        with pytest.raises(RuntimeError, match="not given to dnirnn.backward"):
            backward(onward.sum(), [(first, second)[i] for i in kept])
    onward, _ = cut(torch.randn(2, 3, requires_grad=True), SyntheticGradient(3))
    with pytest.raises(RuntimeError, match="not given to dnirnn.backward"):
        onward.sum().backward()


def test_h_read_in_onwards_place_is_an_error():
    h = torch.randn(2, 3, requires_grad=True)
    _, interface = cut(h, SyntheticGradient(3))
    with pytest.raises(RuntimeError, match="must read in the place of h"):
        backward(h.sum(), [interface])


@pytest.mark.parametrize(
    ("h", "estimator", "context", "match"),
    [
        (torch.zeros(2, 3), SyntheticGradient(4), None, "predicts for 4 features; h has 3"),
        (torch.zeros(2, 3), nn.Linear(3, 3), None, "estimator must be a dnirnn estimator"),
        (torch.zeros(3), SyntheticGradient(3), None, r"h must be \[B, ...\]"),
        (torch.zeros(2, 3), ConvSyntheticGradient(3), None, r"h must be \[B, C, H, W\]"),
        (torch.zeros(2, 3, dtype=torch.long), SyntheticGradient(3), None, "floating-point"),
        (torch.zeros(2, 3), SyntheticGradient(3, context_size=2), None, "context must be given"),
        (torch.zeros(2, 3), SyntheticGradient(3), torch.zeros(2, 2), "context must not be given"),
        (
            torch.zeros(2, 3), SyntheticGradient(3, context_size=2), torch.zeros(1, 2),
            r"context must be \[2, 2\]",
        ),
        (torch.zeros(2, 3), SyntheticGradient(3, dense=True), None, "no dense"),
        (torch.zeros(2, 3), SyntheticGradient(3, trace_decay=0.5), None, "no trace_decay"),
        (torch.zeros(2, 3), SyntheticGradient(3, auxiliary=0.5), None, "no auxiliary"),
        (torch.zeros(2, 3), BPLambda(3, 2), None, "no trace_decay"),
        (torch.zeros(2, 3, device="meta"), SyntheticGradient(3), None, "on h's device meta"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(h, estimator, context, match):
    with pytest.raises((TypeError, ValueError), match=match):
        cut(h, estimator, context)
