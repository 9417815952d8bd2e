"""MTRNN: leaky units, each group with a time constant of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.checks import check_sizes, is_number, shown
from dnirnn.core import Core, CoreConfig
from dnirnn.options import option


class MTRNN(Core):
    """A multiple timescale RNN: M groups of H / M leaky units, one a time constant, all connected.

    With u [H] the units' potentials and tau the time constant of each,

        u' = (1 - 1 / tau) u + (W x + U tanh(u) + b) / tau
        y = tanh(u')

    A unit forgets by e in about tau steps: a fast group follows the input, a slow one averages over
    what it is sent. Every unit costs its step at every t, where a Clockwork's slow modules cost
    nothing between ticks; nothing depends on t, so sequences may be cut and reset anywhere.

    The output [B, H] is y, the state [B, H] is u, both in the order of ``time_constants``.

    time_constants: M finite numbers of at least 1, in steps; 1 is a plain recurrent unit.
    hidden_size: H, a multiple of M.

    Raises TypeError or ValueError naming the argument that does not fit.

    Source: Yamashita and Tani, Emergence of Functional Hierarchy in a Multiple Timescale Neural
    Network Model, PLoS Computational Biology 2008; time constants 5 and 70 as its context units have them, where the
    slow group is not connected to input and output. Weights start as torch.nn.RNN's do, uniform in
    (-1 / sqrt(H), 1 / sqrt(H)).
    """

    tau: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        time_constants: Sequence[float] = (5.0, 70.0),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        if not isinstance(time_constants, Sequence) or isinstance(time_constants, str):
            raise TypeError(f"time_constants must be a sequence; got {shown(time_constants)}")
        sound = [is_number(tau) and 1 <= tau < math.inf for tau in time_constants]
        if not sound or not all(sound):
            raise ValueError(
                f"time_constants must be one or more numbers of at least 1; got {shown(time_constants)}"
            )
        if hidden_size % len(time_constants):
            raise ValueError(
                f"hidden_size must be a multiple of the {len(time_constants)} time_constants; got"
                f" {hidden_size}"
            )
        self.input_size = input_size
        self.output_size = self.state_size = self.hidden_size = hidden_size
        self.time_constants = tuple(time_constants)
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        tau = torch.tensor(self.time_constants, device=device, dtype=torch.float64)
        tau = tau.repeat_interleave(hidden_size // len(time_constants))
        # Made by the constructor alike wherever it is called: no part of a checkpoint.
        self.register_buffer("tau", tau.to(self.bias.dtype), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        inward = F.linear(x_BI, self.weight_ih, self.bias)
        recurrent = F.linear(torch.tanh(state_BS).to(inward.dtype), self.weight_hh)
        drive = (inward + recurrent).to(state_BS.dtype)
        state = state_BS + (drive - state_BS) / self.tau.to(state_BS.dtype)
        return torch.tanh(state).to(x_BI.dtype), state

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, time_constants={list(self.time_constants)}"


@dataclass(frozen=True)
class MTRNNConfig(CoreConfig, name="mtrnn"):
    """leaky units in groups, each with its --time-constants"""

    time_constants: tuple = option(
        (5.0, 70.0), "steps in which a unit forgets by e, of each group", "STEPS", at_least=1,
        many=float,
    )  # fmt: skip

    @property
    def multiple(self) -> int:
        return len(self.time_constants)

    def build(self, input_size: int) -> Core:
        return MTRNN(input_size, self.hidden, self.time_constants)
