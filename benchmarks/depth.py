"""A cut at every layer of a feed-forward network: what DNI costs beside backpropagation.

784 -> 6 x 256 (batch norm, ReLU) -> 10, batch 256, a linear estimator above each of the six layers,
in lockstep; the same loop for both: Adam, fused, for the network, and for the estimators.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import dnirnn
from benchmarks.steps import adam

PIXELS, WIDTH, LAYERS, BATCH, CLASSES = 784, 256, 6, 256, 10
SIZES = [PIXELS, *[WIDTH] * LAYERS]


def network() -> list[nn.Module]:
    torch.manual_seed(0)
    parts: list[nn.Module] = [
        nn.Sequential(nn.Linear(inward, outward, bias=False), nn.BatchNorm1d(outward), nn.ReLU())
        for inward, outward in zip(SIZES, SIZES[1:])
    ]
    return [*parts, nn.Linear(WIDTH, CLASSES)]


def step_of(estimators: list[dnirnn.GradientEstimator]) -> Callable[[], None]:
    """A step of the network; cut above each layer where there are estimators."""
    parts = network()
    optimizers = [adam(nn.ModuleList(parts).parameters())]
    if estimators:
        optimizers.append(adam(nn.ModuleList(estimators).parameters()))
    x, y = torch.randn(BATCH, PIXELS), torch.randint(CLASSES, (BATCH,))

    def step() -> None:
        h, interfaces = parts[0](x), []
        for i, part in enumerate(parts[1:]):
            if estimators:
                h, interface = dnirnn.cut(h, estimators[i])
                interfaces.append(interface)
            h = part(h)
        dnirnn.backward(F.cross_entropy(h, y), interfaces, 1 / BATCH)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def estimators() -> list[dnirnn.GradientEstimator]:
    return [dnirnn.SyntheticGradient(WIDTH, scale=1.0, discount=1.0) for _ in range(LAYERS)]


def floor() -> Callable[[], None]:
    """The products of the step with estimators, and its Adam, and no more."""
    parts, beside = nn.ModuleList(network()), nn.ModuleList(estimators())
    optimizers = [adam(parts.parameters()), adam(beside.parameters())]
    for parameter in (*parts.parameters(), *beside.parameters()):
        parameter.grad = torch.randn_like(parameter)
    sizes = [*SIZES, CLASSES]
    inputs = [torch.randn(BATCH, size) for size in sizes]
    into = [torch.empty(BATCH, size) for size in sizes]
    weights = [torch.randn(b, a) for a, b in zip(sizes, sizes[1:])]
    gradients = [torch.empty_like(weight) for weight in weights]
    square, its_gradient = torch.randn(WIDTH, WIDTH), torch.empty(WIDTH, WIDTH)

    def step() -> None:
        for i, (weight, gradient) in enumerate(zip(weights, gradients)):
            torch.mm(inputs[i], weight.T, out=into[i + 1])
            torch.mm(inputs[i + 1].T, inputs[i], out=gradient)
            if i:
                torch.mm(inputs[i + 1], weight, out=into[i])
        for i in range(1, LAYERS + 1):
            # An estimator's prediction, which its regression needs as well, and its gradient.
            torch.mm(inputs[i], square, out=into[i])
            torch.mm(inputs[i].T, into[i], out=its_gradient)
        for optimizer in optimizers:
            optimizer.step()

    return step


def sides() -> dict[str, Callable[[], None]]:
    return {"dni": step_of(estimators()), "backpropagation": step_of([]), "floor": floor()}
