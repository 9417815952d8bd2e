"""torch.func and forward-mode differentiation: they go through every core, or are refused by name."""

import pytest
import torch
from strategies import assert_close
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap

from dnirnn import GRU, LSTM, RNN, Clockwork, SyntheticGradient, Truncated, ZeroGradient

KINDS = {
    "lstm": lambda: LSTM(3, 4, 2),
    "gru": lambda: GRU(3, 4),
    "rnn": lambda: RNN(3, 4, 2),
    "clockwork": lambda: Clockwork(3, 4, (1, 2)),
    "clockwork lstm": lambda: Clockwork(3, 4, (1, 2), "lstm"),
}


@pytest.fixture(params=KINDS)
def core(request):
    return KINDS[request.param]().double()


def tensors(core, *more):
    return (
        torch.randn(*more, 4, 2, 3, dtype=torch.float64),
        torch.randn(*more, 2, core.state_size, dtype=torch.float64),
    )


def test_forward_mode(core):
    """Against the vector-Jacobian products of reverse mode."""
    x, state = tensors(core)
    directions = [torch.randn_like(x), torch.randn_like(state)]

    def run(x, state):
        return torch.cat([part.flatten() for part in core(x, state, 0)])

    leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
    values = run(*leaves)
    seed = torch.randn_like(values)
    back = torch.autograd.grad(values, leaves, seed)
    expected = sum((gradient * along).sum() for gradient, along in zip(back, directions))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip((x, state), directions)]
        assert_close((forward_ad.unpack_dual(run(*duals)).tangent * seed).sum(), expected)
    assert_close((jvp(run, (x, state), tuple(directions))[1] * seed).sum(), expected)


def test_vmap(core):
    x, state = tensors(core, 3)
    expected = [core(*each, 0) for each in zip(x, state)]
    output, ended = vmap(lambda x, state: core(x, state, 0))(x, state)
    assert_close(output, torch.stack([each[0] for each in expected]))
    assert_close(ended, torch.stack([each[1] for each in expected]))


def test_per_sample_gradients(core):
    """The usual recipe: grad of a functional call, over vmap, for each sequence alone."""
    x, state = tensors(core)
    parameters = dict(core.named_parameters())

    def loss(parameters, x_TI, state_S):
        output, _ = functional_call(core, parameters, (x_TI[:, None], state_S[None], 0))
        return output.square().sum()

    found = vmap(grad(loss), (None, 1, 0))(parameters, x, state)
    for b in range(2):
        alone = core(x[:, b : b + 1], state[b : b + 1], 0)[0].square().sum()
        expected = torch.autograd.grad(alone, list(core.parameters()))
        assert_close([found[name][b] for name in parameters], list(expected))


def test_a_truncated_goes_through_with_plain_truncation_and_is_refused_with_an_estimator():
    core = LSTM(3, 4).double()
    x, state = tensors(core)

    def run(truncated):
        return jacrev(lambda x: truncated(x, state)[0].sum())(x)

    expected = x.clone().requires_grad_()
    Truncated(core, 2, ZeroGradient())(expected, state)[0].sum().backward()
    assert_close(run(Truncated(core, 2, ZeroGradient())), expected.grad)
    with pytest.raises(RuntimeError, match=r"torch\.func.*ZeroGradient"):
        run(Truncated(core, 2, SyntheticGradient(8).double()))
