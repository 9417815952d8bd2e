"""What GRU and RNN have in common: torch's module, run on the fused operator."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import ops
from dnirnn.checks import check_sizes
from dnirnn.core import has_hooks
from dnirnn.embedding import Embedded
from dnirnn.from_torch import NAMES, FromTorch, functional
from dnirnn.fused_layers import FusedLayers


class Layers(nn.RNNBase):
    """torch.nn.GRU, or torch.nn.RNN with tanh, under another class: torch.compile refuses those."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return functional(self, x, h)

    @property
    def weights(self) -> list[Tensor]:
        """[weight_ih, weight_hh, bias_ih, bias_hh] of layer 0, then of layer 1, ..."""
        layers = range(self.num_layers)
        return [getattr(self, f"{name}_l{layer}") for layer in layers for name in NAMES]


class Units(FusedLayers, FromTorch):
    """Layers of torch.nn.GRU, or of torch.nn.RNN with tanh, on the fused operator on the CPU.

    On a GPU, and where the operator is not built, they run as torch's own.

    mode: torch's name of the kind, "GRU" or "RNN_TANH".
    options: device and dtype.
    """

    def __init__(self, mode: str, input_size: int, hidden_size: int, num_layers: int, **options):
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        super().__init__(Layers(mode, input_size, hidden_size, num_layers, **options))
        self.register_load_state_dict_pre_hook(take_from_torch)

    @property
    def weights(self) -> list[Tensor]:
        return self.module.weights

    def has_operator(self, x_TBI: Tensor | Embedded) -> bool:
        there = self.module.mode in ops.CELLS.get(x_TBI.device.type, ())
        return there and super().has_operator(x_TBI) and not has_hooks(self.module)

    def run(self, x_TBI: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        if ops.in_transform_or_forward_mode():
            return self.plain(x_TBI, state_BS)
        return super().run(x_TBI, state_BS)

    def plain(self, x_TBI: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The same in torch's plain operations: its own GRU and RNN have no rule for vmap."""
        output, states, weights = x_TBI, [], self.weights
        for layer, h in enumerate(state_BS.to(x_TBI.dtype).chunk(self.module.num_layers, 1)):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            outputs = []
            for inward in F.linear(output, w_ih, b_ih).unbind():
                recurrent = F.linear(h, w_hh, b_hh)
                if self.module.mode == "GRU":
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
