"""Embedding is torch.nn.Embedding; on a GPU its gradient is summed by symbol.

On a GPU; without one test_cuda_on_host runs the operator in the emulation.
"""

import pytest
import torch
from strategies import assert_close
from torch import nn

from dnirnn import Embedding, ops

SIZES = {  # symbols, width, shape of x
    "one": (1, 1, (1,)),
    "narrow": (5, 3, (7, 4)),
    "a slice and a part": (50, 40, (9, 33)),
    "more rows than a block takes at once": (3, 2, (1100,)),
    "none": (4, 3, (0, 2)),
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture
def where(device):
    if not ops.sums_by_symbol(torch.empty(1, device=device)):
        pytest.skip("no sum by symbol is built for this device")
    return device


def made(name, dtype, device):
    symbols, width, shape = SIZES[name]
    drawn = dict(generator=torch.Generator().manual_seed(len(name)), device="cpu")
    x = torch.randint(symbols, shape, **drawn)
    weight, gradient = torch.randn(symbols, width, **drawn), torch.randn(*shape, width, **drawn)
    return weight.to(device, dtype), x.to(device), gradient.to(device, dtype)


def gradient_of(kind, weight, x, gradient):
    module = kind(*weight.shape, _weight=weight.clone())
    module(x).backward(gradient)
    return module.weight.grad


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_its_gradient_is_the_sum_of_the_rows_of_a_symbol(where, name, dtype):
    weight, x, gradient = made(name, dtype, where)
    # Of 16 bits the sum is of float32 and rounded once; torch's may be rounded as it goes.
    theirs = gradient_of(nn.Embedding, *(t.double() if t is not x else x for t in (weight, x, gradient)))
    ours = gradient_of(Embedding, weight, x, gradient)
    assert ours.dtype == dtype
    assert_close(ours.double(), theirs, TOLERANCE[dtype])
    assert torch.equal(ours, gradient_of(Embedding, weight, x, gradient))


def test_gradgradcheck(where):
    weight, x, _ = made("narrow", torch.float64, where)
    module = Embedding(*weight.shape, _weight=weight)
    assert torch.autograd.gradgradcheck(
        lambda w: torch.func.functional_call(module, {"weight": w}, x).square(), weight.requires_grad_()
    )


def test_symbols_of_32_bits_and_strides(where):
    weight, x, gradient = made("a slice and a part", torch.float32, where)
    ours = gradient_of(Embedding, weight, x.int().t(), gradient.transpose(0, 1))
    assert_close(ours, gradient_of(nn.Embedding, weight, x.t(), gradient.transpose(0, 1)), 1e-6)


def test_bad_input_of_the_operator_is_named(where):
    call = torch.ops.dnirnn.embedding_backward
    gradient, x = torch.zeros(4, 3, device=where), torch.zeros(4, dtype=torch.int64, device=where)
    with pytest.raises(ValueError, match="gradient must be"):
        call(gradient, x[:3], 2)
    with pytest.raises(TypeError, match="symbols must be int64"):
        call(gradient, x.int(), 2)
    with pytest.raises(TypeError, match="gradient must be float32"):
        call(gradient.int(), x, 2)
    with pytest.raises(ValueError, match="count must be at least 0"):
        call(gradient, x, -1)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(padding_idx=2), dict(max_norm=1.0), dict(scale_grad_by_freq=True), dict(sparse=True)],
    ids=lambda options: ", ".join(options) or "none",
)
def test_it_is_torchs_with_every_option(options, device):
    torch.manual_seed(0)
    theirs = nn.Embedding(5, 3, device=device, **options)
    ours = Embedding(5, 3, device=device, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.tensor([[0, 2, 2], [4, 2, 1]], device=device)
    found = [module(x) for module in (ours, theirs)]
    assert torch.equal(*found)
    for outputs in found:
        outputs.square().sum().backward()
    gradients = [m.weight.grad.to_dense() if m.sparse else m.weight.grad for m in (ours, theirs)]
    assert_close(*gradients, 1e-6)
    assert torch.equal(ours.weight, theirs.weight)


def test_transforms_of_torch_func_go_through_it(device):
    weight, x, _ = made("narrow", torch.float64, device)
    module = Embedding(*weight.shape, _weight=weight)

    def loss(w):
        return torch.func.functional_call(module, {"weight": w}, x).square().sum()

    counts = torch.bincount(x.flatten(), minlength=len(weight)).double()
    assert_close(torch.func.grad(loss)(weight), 2 * weight * counts[:, None], 1e-12)
