"""dnirnn.cut, send and receive: shapes, kinds of estimator, and wrong use."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import nets, random_estimator, with_cuts
from strategies import assert_close, gradients
from torch import nn

from dnirnn import (
    LSTM,
    BPLambda,
    ConvSyntheticGradient,
    LeastSquares,
    SyntheticGradient,
    Truncated,
    backward,
    cut,
    receive,
    send,
)

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
    wanted = torch.autograd.grad(interface.end, asked, interface.synthetic, retain_graph=True)
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
        assert_close(estimator(one.start), one.probe.grad, 1e-3)


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
