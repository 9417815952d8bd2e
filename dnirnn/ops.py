"""The fused operators: typed wrappers, shapes for tracing, autograd formulas, and what is built."""

import torch
from torch import Tensor

built = False


def fused_for(x: Tensor) -> bool:
    """Whether the fused operator runs on tensors like ``x``."""
    return built and x.device.type == "cpu"


def accumulate_regression(entered: Tensor, target: Tensor, weights: list[Tensor]) -> Tensor:
    """Adds to the weights' .grad the gradient of half the squared error, summed over S, meaned over rows."""
    with torch.enable_grad():
        prediction = entered
        for i in range(0, len(weights), 2):
            prediction = torch.relu(prediction) if i else prediction
            prediction = torch.nn.functional.linear(prediction, *weights[i : i + 2])
        error = 0.5 * (prediction - target).square().sum(-1).mean()
        error.backward(inputs=weights)
    return error.detach()
