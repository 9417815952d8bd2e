"""GRU: torch.nn.GRU as a Core."""

import torch

from dnirnn.cells.units import Units
from dnirnn.from_torch import refuse_options
from dnirnn.weight_drop import LayeredConfig


class GRU(Units):
    """L layers of gated recurrent units; each, with gates r, z, n in the rows of the weights:

        r, z = sigmoid(W_i x + b_i + W_h h + b_h),  n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    The state [B, L H] is h_0, h_1, ...; the output [B, H] the last layer's h'. The parameters are
    torch.nn.GRU's, under ``module.``; ``load_state_dict(torch.nn.GRU(...).state_dict())``
    works strictly. Parameters stay float32 under autocast and are cast per call; the state stays
    float32.

    input_size, hidden_size, num_layers: I, H, L, each at least 1.

    Raises ValueError where one of them is not, and TypeError for an option of torch.nn.GRU's that there is none of here, saying what to
    write.

    Source: Cho et al. 2014, with the reset gate behind the product, as cuDNN has it.
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
        refuse_options(GRU, options)
        super().__init__("GRU", input_size, hidden_size, num_layers, device=device, dtype=dtype)


class GRUConfig(LayeredConfig, name="gru"):
    """GRU"""

    kind = GRU
