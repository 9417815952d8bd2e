"""The fused regression is half the squared error's gradient, as autograd finds it.

On the CPU, on a GPU, and in the emulation, which test_cuda_on_host runs.
"""

import pytest
import torch
from strategies import assert_close

from dnirnn import ops

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
SIZES = {  # rows, S, widths of the hidden layers
    "linear": (3, 4, ()),
    "one row": (1, 6, (5,)),
    "one hidden layer": (7, 300, (9,)),
    "more than a block's share": (300, 130, (20, 8)),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_equals_autograd(name, dtype, device):
    if not ops.built_for(torch.device(device).type):
        pytest.skip("no fused regression is built for this device")
    rows, size, hidden = SIZES[name]
    generator = torch.Generator().manual_seed(len(name))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype, device="cpu").to(device)

    widths = [size, *hidden, size]
    layers = [part for a, b in zip(widths, widths[1:]) for part in (draw(b, a) / a**0.5, draw(b))]
    entered, target = draw(rows, size), draw(size, rows).t()
    error, gradients = torch.ops.dnirnn.regression(entered, target, layers)
    leaves = [part.clone().requires_grad_() for part in layers]
    value = entered
    for i in range(0, len(leaves), 2):
        value = value @ leaves[i].t() + leaves[i + 1]
        value = value.relu() if i + 2 < len(leaves) else value
    expected = 0.5 * (value - target).square().sum() / rows
    expected.backward()
    assert_close(error, expected.detach(), TOLERANCE[dtype])
    assert_close(gradients, [leaf.grad for leaf in leaves], 10 * TOLERANCE[dtype])
    again = torch.ops.dnirnn.regression(entered, target, layers)
    assert torch.equal(error, again[0]) and all(map(torch.equal, gradients, again[1]))
