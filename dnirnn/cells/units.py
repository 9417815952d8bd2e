"""What GRU and RNN have in common: torch's module, run on the fused operator."""

import torch
from torch import Tensor, nn

from dnirnn import ops
from dnirnn.from_torch import FromTorch


class Units(FromTorch):
    """An nn.GRU, or an nn.RNN with tanh, whose layers run on the fused operator on the CPU.

    On a GPU, and where the operator is not built, they run as torch's own.
    """

    def run(self, x_TBI: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        if x_TBI.device.type != "cpu" or not ops.fused_for(x_TBI):
            return super().run(x_TBI, state_BS)
        output, states = x_TBI, []
        for layer, h in enumerate(state_BS.chunk(self.module.num_layers, 1)):
            weights = [
                getattr(self.module, f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            gated = isinstance(self.module, nn.GRU)
            output = ops.recurrent(output, h.to(output.dtype), *weights, gated)
            states.append(output[-1])
        return output, torch.cat(states, 1).to(state_BS.dtype)
