"""DiagonalGradient: its equation, that it is least squares unit by unit, and the command line."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, seeds

from dnirnn import LSTM, DiagonalGradient, SyntheticGradient, Truncated, ZeroGradient, backward
from dnirnn.commands.cli import main
from dnirnn.testing import check_estimator
from dnirnn.training.checkpoint import checkpoints, load


def as_linear(estimator: DiagonalGradient) -> SyntheticGradient:
    """The linear estimator whose matrix is this one's, written out."""
    given = dict(scale=estimator.scale, discount=estimator.discount, dense=estimator.dense)
    given |= dict(trace_decay=estimator.trace_decay, context_size=estimator.context_size)
    linear = SyntheticGradient(estimator.state_size, (), **given).double()
    with torch.no_grad():
        parts = [estimator.weight.diag()]
        parts += [estimator.of_context] if estimator.context_size else []
        linear.layers[0].weight.copy_(torch.cat(parts, 1))
        linear.layers[0].bias.copy_(estimator.bias)
    return linear


@given(knobs=st.sampled_from([{}, {"dense": True}, {"trace_decay": 0.5}]), context=st.integers(0, 2), seed=seeds)
def test_it_is_the_linear_one_whose_matrix_is_diagonal(knobs, context, seed):
    """What is injected, the error, and the gradient: the diagonal of that one's."""
    torch.manual_seed(seed)
    estimator = DiagonalGradient(8, 0.7, 0.4, context_size=context, **knobs).double()
    for parameter in estimator.parameters():
        torch.nn.init.normal_(parameter)
    core, x, state = LSTM(3, 4).double(), torch.randn(5, 2, 3).double(), torch.randn(2, 8).double()
    given = dict(context=torch.randn(6, 2, context).double()) if context else {}
    found = []
    for one in (estimator, as_linear(estimator)):
        core.zero_grad()
        output, _, cuts = Truncated(core, 2, one)(x, state, **given)
        errors = backward(output.square().sum(), cuts)
        found.append([[p.grad.clone() for p in core.parameters()], errors["estimator_error"]])
    assert_close(*found)
    linear = as_linear(estimator)
    rows, target = torch.randn(6, 8).double(), torch.randn(6, 8).double()
    beside = [torch.randn(6, context).double()] if context else []
    estimator.zero_grad()
    assert_close(estimator.accumulate(rows, target, *beside), linear.accumulate(rows, target, *beside))
    gradient = linear.layers[0].weight.grad
    assert_close(estimator.weight.grad, gradient[:, :8].diag())
    assert_close(estimator.bias.grad, linear.layers[0].bias.grad)
    if context:
        assert_close(estimator.of_context.grad, gradient[:, 8:])


def test_a_fresh_one_injects_nothing_and_the_laws_of_an_estimator_hold():
    core = LSTM(3, 4).double()
    x, state, found = torch.randn(6, 2, 3).double(), torch.zeros(2, 8).double(), []
    for estimator in (DiagonalGradient(8).double(), ZeroGradient()):
        core.zero_grad()
        output, _, cuts = Truncated(core, 2, estimator)(x, state)
        backward(output.square().sum(), cuts)
        found.append([p.grad.clone() for p in core.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found))
    check_estimator(DiagonalGradient(8), 8)
    check_estimator(DiagonalGradient(8, context_size=3), 8, context_size=3)


def test_the_command_line_trains_one(tmp_path):
    words = "train copy --estimator diagonal --context input --scale 0.5 --bits 1 --hidden 4 --batch 2"
    words += f" --truncation 2 --updates 4 --evaluate-every 100 --quiet --out {tmp_path}"
    assert main(words.split()) == 0
    tensors, _ = load(checkpoints(tmp_path / "checkpoints")[-1])
    trained = {n.rsplit(".", 1)[-1]: v for n, v in tensors.items() if "estimator" in n and n.startswith("model")}
    assert {"weight", "bias", "of_context"} <= trained.keys() and trained["weight"].any()


def test_dense_targets_have_no_traces():
    with pytest.raises(ValueError, match="trace_decay"):
        DiagonalGradient(8, dense=True, trace_decay=0.5)
