"""What GRU and RNN have in common: torch's module, run on the fused operator."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import ops
from dnirnn.core import has_hooks
from dnirnn.from_torch import FromTorch
from dnirnn.lstm import NAMES


class Units(FromTorch):
    """An nn.GRU, or an nn.RNN with tanh, whose layers run on the fused operator on the CPU.

    On a GPU, and where the operator is not built, they run as torch's own.
    """

    def __init__(self, module: nn.GRU | nn.RNN):
        super().__init__(module)
        self.register_load_state_dict_pre_hook(take_from_torch)

    @property
    def weights(self) -> list[Tensor]:
        """[weight_ih, weight_hh, bias_ih, bias_hh] of layer 0, then of layer 1, ..."""
        layers = range(self.module.num_layers)
        return [getattr(self.module, f"{name}_l{layer}") for layer in layers for name in NAMES]

    def run(self, x_TBI: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        module = self.module
        if ops.in_transform() or ops.in_forward_mode():
            return self.plain(x_TBI, state_BS)
        if x_TBI.device.type != "cpu" or not ops.fused_for(x_TBI) or has_hooks(module):
            return super().run(x_TBI, state_BS)
        output, states, weights = x_TBI, [], self.weights
        for layer, h in enumerate(state_BS.chunk(module.num_layers, 1)):
            own, gated = weights[4 * layer : 4 * layer + 4], isinstance(module, nn.GRU)
            output = ops.recurrent(output, h.to(output.dtype), *own, gated)
            states.append(output[-1])
        return output, torch.cat(states, 1).to(state_BS.dtype)

    def plain(self, x_TBI: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The same in torch's plain operations: its own GRU and RNN have no rule for vmap."""
        output, states, weights = x_TBI, [], self.weights
        for layer, h in enumerate(state_BS.to(x_TBI.dtype).chunk(self.module.num_layers, 1)):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            outputs = []
            for inward in F.linear(output, w_ih, b_ih).unbind():
                recurrent = F.linear(h, w_hh, b_hh)
                if isinstance(self.module, nn.GRU):
                    (r, z, n), (r_h, z_h, n_h) = inward.chunk(3, 1), recurrent.chunk(3, 1)
                    r, z = torch.sigmoid(r + r_h), torch.sigmoid(z + z_h)
                    h = torch.lerp(torch.tanh(n + r * n_h), h, z)
                else:
                    h = torch.tanh(inward + recurrent)
                outputs.append(h)
            output = torch.stack(outputs)
            states.append(h)
        return output, torch.cat(states, 1).to(state_BS.dtype)


def take_from_torch(core: Units, entries: dict[str, Tensor], prefix: str, *_) -> None:
    """Renames the entries of torch's own module: they lie under ``module.`` here."""
    for name in [name for name in entries if name.startswith(prefix)]:
        own = name.removeprefix(prefix)
        if own.startswith(NAMES):
            entries[f"{prefix}module.{own}"] = entries.pop(name)
