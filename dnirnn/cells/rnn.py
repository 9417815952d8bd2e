"""RNN: torch.nn.RNN as a Core."""

import torch

from dnirnn.cells.units import Units
from dnirnn.from_torch import refuse_options
from dnirnn.weight_drop import LayeredConfig


class RNN(Units):
    """L layers of the plain recurrent network: h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    The state [B, L H] is h_0, h_1, ...; the output [B, H] the last layer's h'. The parameters are
    torch.nn.RNN's, under ``module.``; ``load_state_dict(torch.nn.RNN(...).state_dict())``
    works strictly. Parameters stay float32 under autocast and are cast per call; the state stays
    float32.

    input_size, hidden_size, num_layers: I, H, L, each at least 1.

    Raises ValueError where one of them is not, and TypeError for an option of torch.nn.RNN's that there is none of here, saying what to
    write.

    Source: Elman 1990.
    """

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
        refuse_options(RNN, options)
        super().__init__("RNN_TANH", input_size, hidden_size, num_layers, device=device, dtype=dtype)


class RNNConfig(LayeredConfig, name="rnn"):
    """plain recurrent network (tanh)"""

    kind = RNN
