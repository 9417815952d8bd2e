"""A core in torch.export: one graph for every length."""

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan

from dnirnn.masks import times


def scanned(
    core: nn.Module, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """core(x, state, t0, reset) as torch's scan over ``core.step``, without gradients."""
    steps, batch, _ = x_TBI.shape
    t_TB = times(t0, steps, reset, x_TBI.device).expand(steps, batch)
    over = [x_TBI, t_TB]
    if reset is not None:
        initial = core.initial_state(batch)
        over.append(reset)

    def run(state: Tensor, at: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, t, *resets = at
        if resets:
            state = torch.where(resets[0][:, None], initial, state)
        output, state = core.step(x, state, t)
        # scan wants tensors of their own, with the carry's strides.
        return state.contiguous().clone(), output.contiguous().clone()

    with torch.no_grad():
        state, output = scan(run, state_BS.contiguous(), over)
    return output, state
