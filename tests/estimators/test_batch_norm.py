"""Estimators with batch norm: the plain network of the same layers, rows seen once, wrong use."""

import copy

import pytest
import torch
from strategies import assert_close
from torch import nn

from dnirnn import LSTM, ConvSyntheticGradient, SyntheticGradient, Truncated, backward, cut

S, C, HIDDEN = 3, 2, (5, 4)


def plain(estimator: nn.Module) -> nn.Sequential:
    """The same layers in plain torch, with copies of the parameters."""
    layers = []
    for layer, norm in zip(estimator.layers, estimator.norms):
        layers += [layer, norm, nn.ReLU()]
    found = nn.Sequential(*layers, estimator.layers[-1])
    return copy.deepcopy(found)


def drawn(estimator: nn.Module) -> nn.Module:
    """With parameters that are not those of the start."""
    with torch.no_grad():
        for parameter in estimator.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return estimator.double()


@pytest.mark.parametrize("context_size", [0, C])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_cut_sends_and_fits_what_the_plain_network_would(context_size, scale):
    estimator = drawn(
        SyntheticGradient(S, HIDDEN, scale, 0.7, context_size=context_size, batch_norm=True)
    )
    oracle = plain(estimator)
    h = torch.randn(6, S, dtype=torch.float64, requires_grad=True)
    away = torch.randn(6, S, dtype=torch.float64)
    context = torch.randn(6, C, dtype=torch.float64) if context_size else None
    onward, interface = cut(h, estimator, context)
    error = backward((onward * away).sum(), [interface])["estimator_error"]

    told = h.detach() if context is None else torch.cat([h.detach(), context], 1)
    predicted = oracle(told)
    expected = 0.5 * (predicted - away).square().sum(1).mean()
    expected.backward()
    assert_close(h.grad, scale * predicted.detach())
    assert_close(error, expected.detach())
    mine = [p.grad for p in estimator.own_parameters()]
    by_shape = [p.grad for m in (nn.Linear, nn.BatchNorm1d) for one in oracle
                if isinstance(one, m) for p in one.parameters()]  # fmt: skip
    for gradient, wanted in zip(mine, by_shape, strict=True):
        assert_close(gradient, wanted)
    # Running statistics: every row was seen once.
    for norm, wanted in zip(estimator.norms, [m for m in oracle if isinstance(m, nn.BatchNorm1d)]):
        assert_close(norm.running_mean, wanted.running_mean)
        assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("context_size", [0, C])
def test_a_batch_copied_gives_the_same_gradients(normalise, context_size):
    def fit(copies: int) -> list[torch.Tensor]:
        torch.manual_seed(1)
        estimator = drawn(
            SyntheticGradient(
                S, HIDDEN, 1.0, 1.0, context_size=context_size, normalise=normalise, batch_norm=True
            )
        )
        h = torch.randn(4, S, dtype=torch.float64).repeat(copies, 1).requires_grad_()
        away = torch.randn(4, S, dtype=torch.float64).repeat(copies, 1)
        context = torch.randn(4, C, dtype=torch.float64).repeat(copies, 1)
        onward, interface = cut(h, estimator, context if context_size else None)
        backward((onward * away).sum() / copies, [interface], unit=1 / copies)
        return [p.grad for p in estimator.parameters()]

    for one, two in zip(fit(1), fit(2), strict=True):
        assert_close(one, two)


def test_a_fresh_one_sends_nothing_and_learns_a_gradient():
    estimator = SyntheticGradient(S, (32,), 1.0, 1.0, batch_norm=True).double()
    optimizer = torch.optim.Adam(estimator.parameters(), 1e-2)
    torch.manual_seed(3)
    h, errors = torch.randn(64, S, dtype=torch.float64), []
    for _ in range(200):
        made = h.clone().requires_grad_()
        onward, interface = cut(made, estimator)
        errors.append(backward(onward.abs().sum(), [interface])["estimator_error"])
        if len(errors) == 1:
            assert not made.grad.any()
        optimizer.step()
        optimizer.zero_grad()
    assert errors[-1] < 0.1 * errors[0]


def test_it_serves_chunks_of_time_and_after_eval_rows_by_themselves():
    core = LSTM(2, 4).double()
    estimator = drawn(SyntheticGradient(core.state_size, (6,), batch_norm=True))
    truncated = Truncated(core, 3, estimator)
    output, _, interfaces = truncated(
        torch.randn(7, 5, 2, dtype=torch.float64), core.initial_state(5)
    )
    backward(output.square().sum(), interfaces)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in estimator.parameters())
    estimator.eval()
    states = torch.randn(4, core.state_size, dtype=torch.float64)
    assert_close(estimator(states)[:1], estimator(states[:1]))


def test_maps_are_normalised_over_rows_and_places():
    estimator = drawn(ConvSyntheticGradient(S, (5,), kernel_size=3, batch_norm=True))
    maps = torch.randn(2, S, 4, 4, dtype=torch.float64)
    oracle = plain(estimator)
    assert_close(estimator(maps), oracle(maps))
    made = maps.clone().requires_grad_()
    onward, interface = cut(made, estimator)
    backward(onward.square().sum(), [interface])
    assert all(p.grad is not None for p in estimator.parameters())


@pytest.mark.parametrize("kind", [SyntheticGradient, ConvSyntheticGradient])
def test_wrong_use_is_named(kind):
    with pytest.raises(ValueError, match="batch_norm is of hidden layers"):
        kind(S, batch_norm=True)


def test_one_row_is_refused_in_training():
    estimator = SyntheticGradient(S, (4,), batch_norm=True)
    with pytest.raises(ValueError, match="batch_norm takes calls of at least 2 rows"):
        cut(torch.randn(1, S, requires_grad=True), estimator)
