"""LSTM: torch.nn.LSTM as a Core, on the fused operator."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.checks import check_sizes, check_tensors
from dnirnn.from_torch import NAMES, refuse_options
from dnirnn.fused_layers import FusedLayers
from dnirnn.weight_drop import LayeredConfig


class LSTM(FusedLayers):
    """A stack of L LSTM layers, with torch.nn.LSTM's equations, parameter names and initialisation.

    Each layer, with gates i, f, g, o in this order in the rows of the weights:

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh),  g = tanh(the same)
        c' = f * c + i * g;  h' = o * tanh(c')

    The state [B, 2 L H] is h_0, c_0, h_1, c_1, ...; :meth:`pack_state` and :meth:`unpack_state`
    convert from and to torch.nn.LSTM's (h, c). ``load_state_dict(torch.nn.LSTM(...).state_dict())``
    works strictly. Parameters stay float32 under autocast and are cast per call; the state stays
    float32.

    input_size, hidden_size, num_layers: I, H, L, each at least 1.

    Raises ValueError where one of them is not, and TypeError for an option of torch.nn.LSTM's that
    there is none of here, saying what to write.

    Source: Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000).
    """

    reads_t = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: object,
    ):
        super().__init__()
        refuse_options(LSTM, options)
        check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        self.input_size, self.output_size = input_size, hidden_size
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.state_size = 2 * num_layers * hidden_size
        self.names = [f"{name}_l{layer}" for layer in range(num_layers) for name in NAMES]
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size
            bias = (4 * hidden_size,)
            shapes = [(4 * hidden_size, width), (4 * hidden_size, hidden_size), bias, bias]
            for name, shape in zip(NAMES, shapes):
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"{name}_l{layer}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in (-1 / sqrt(H), 1 / sqrt(H)), drawn in torch.nn.LSTM's order."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.names]

    def pack_state(self, h: Tensor, c: Tensor) -> Tensor:
        """The state [B, 2 L H] of torch.nn.LSTM's h and c, each [L, B, H]."""
        check_tensors(h=h, c=c)
        for name, part in (("h", h), ("c", c)):
            if part.dim() != 3 or part.shape[::2] != (self.num_layers, self.hidden_size):
                expected = f"[{self.num_layers}, B, {self.hidden_size}]"
                raise ValueError(f"{name} must be {expected}; got {tuple(part.shape)}")
        if h.shape != c.shape:
            raise ValueError(f"h and c must have one shape; got {tuple(h.shape)}, {tuple(c.shape)}")
        return torch.stack([h, c], 1).permute(2, 0, 1, 3).reshape(h.shape[1], self.state_size)

    def unpack_state(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """torch.nn.LSTM's (h, c), each [L, B, H], of a state [B, 2 L H]."""
        check_tensors(state=state)
        if state.dim() != 2 or state.shape[1] != self.state_size:
            raise ValueError(f"state must be [B, {self.state_size}]; got {tuple(state.shape)}")
        parts = state.view(-1, self.num_layers, 2, self.hidden_size).permute(2, 1, 0, 3)
        return parts[0].contiguous(), parts[1].contiguous()

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        parts = state_BS.chunk(2 * self.num_layers, 1)
        weights, x, state = self.weights, x_BI, []
        for layer in range(self.num_layers):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            h, c = parts[2 * layer : 2 * layer + 2]
            gates = F.linear(x, w_ih, b_ih) + F.linear(h.to(x.dtype), w_hh, b_hh)
            i, f, g, o = gates.to(c.dtype).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            x = h.to(x.dtype)
            state += [h, c]
        return x, torch.cat(state, 1)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


class LSTMConfig(LayeredConfig, name="lstm"):
    """dnirnn's own LSTM"""

    kind = LSTM
