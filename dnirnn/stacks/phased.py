"""PhasedLSTM: an LSTM whose units each open at their own period, for a part of it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.cells.gated import GatedLSTM
from dnirnn.checks import check_knobs, check_positive, check_sizes, is_number, shown
from dnirnn.core import Core, CoreConfig
from dnirnn.masks import times
from dnirnn.options import option


class PhasedLSTM(GatedLSTM):
    """An LSTM layer behind a time gate k: where a unit's gate is shut, the unit is kept as it is.

    Each unit has a period tau and a shift s, learnt, and all an open ratio r:

        phi = ((t - s) mod tau) / tau                                the phase, in [0, 1)
        k = 2 phi / r              where phi < r / 2                 it opens,
            2 - 2 phi / r          where r / 2 <= phi < r            closes,
            alpha phi              else                              and leaks: alpha = leak in
                                                                     training, 0 in eval
        c~ = f * c + i * g;        c' = k * c~ + (1 - k) * c
        h~ = o * tanh(c~);         h' = k * h~ + (1 - k) * h

    with :class:`dnirnn.LSTM`'s gates i, f, g, o: without the paper's peepholes from c to the gates.
    t is the number of steps since the sequence's start; or, where events come unevenly, their times:
    ``core(x, state, times)`` with floats [T, B], best float64, in the unit of the periods. The phase
    is computed in float64, however long the sequence. The gradient of tau is that of the cycle at hand, d phi / d tau = -phi / tau:
    the whole derivative, -(t - s) / tau^2, grows with t, and late in a long stream drowns all
    others. The state [B, 2 H] is h, c. On the CPU it runs on a fused operator, elsewhere as a loop
    over steps in torch.

    periods: (shortest, longest): tau starts log-uniform between them, exp(U(log a, log b)), and s
        uniform in (0, tau). tau is kept positive: the parameter is ``log_period``, its logarithm.
    open_ratio: r, in (0, 1].
    leak: alpha, at least 0.

    Raises ValueError naming the argument that does not fit.

    Source: Neil et al., Phased LSTM: Accelerating Recurrent Network Training for Long or
    Event-based Sequences, NIPS 2016, section 2; r and alpha as there.
    """

    reads_t = True
    takes_times = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        periods: tuple[float, float] = (1.0, math.exp(8)),
        open_ratio: float = 0.05,
        leak: float = 0.001,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_positive(open_ratio=open_ratio)
        check_knobs(leak=leak)
        two = isinstance(periods, (tuple, list)) and len(periods) == 2 and all(map(is_number, periods))
        if not two or not 0 < periods[0] <= periods[1] < math.inf:
            raise ValueError(f"periods must be (shortest, longest), positive; got {shown(periods)}")
        shortest, longest = periods
        if open_ratio > 1:
            raise ValueError(f"open_ratio must be in (0, 1]; got {open_ratio}")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, hidden_size
        self.state_size = 2 * hidden_size
        self.periods, self.open_ratio, self.leak = (shortest, longest), open_ratio, leak
        shapes = {
            "weight_ih": (4 * hidden_size, input_size),
            "weight_hh": (4 * hidden_size, hidden_size),
            "bias_ih": (4 * hidden_size,),
            "bias_hh": (4 * hidden_size,),
            "log_period": (hidden_size,),
            "shift": (hidden_size,),
        }
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.hidden_size**-0.5
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh):
            nn.init.uniform_(parameter, -bound, bound)
        nn.init.uniform_(self.log_period, *map(math.log, self.periods))
        with torch.no_grad():
            self.shift.uniform_(0, 1).mul_(self.log_period.exp())

    def openness(self, t: int | Tensor) -> Tensor:
        """k of each unit at t: [H] for a number, [..., H] for a tensor [...]."""
        t = torch.as_tensor(t, device=self.shift.device)[..., None]
        period = torch.exp(self.log_period.double())
        phase = torch.remainder(t - self.shift.double(), period.detach()) / period
        rising = 2 * phase / self.open_ratio
        leak = (self.leak if self.training else 0.0) * phase
        gate = torch.where(phase < self.open_ratio / 2, rising, 2 - rising)
        gate = torch.where(phase < self.open_ratio, gate, leak)
        return gate.to(torch.promote_types(self.shift.dtype, torch.float32))

    def update(self, inward: Tensor, state: Tensor, k: Tensor) -> Tensor:
        """The next state, of the input's products W x + b [B, 4 H], the state and the time gate."""
        h, c = state.chunk(2, 1)
        gates = inward + F.linear(h.to(inward.dtype), self.weight_hh, self.bias_hh)
        i, f, g, o = gates.to(c.dtype).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        opened = torch.cat([torch.sigmoid(o) * torch.tanh(c), c], 1)
        return torch.lerp(state, opened, torch.cat([k, k], -1))

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        inward = F.linear(x_BI, self.weight_ih, self.bias_ih)
        state = self.update(inward, state_BS, self.openness(t))
        return state[:, : self.hidden_size].to(x_BI.dtype), state

    @property
    def weights(self) -> list[Tensor]:
        return [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]

    def options(
        self, state_BS: Tensor, steps: int, t0: int | Tensor, reset: Tensor | None
    ) -> dict[str, Tensor | list[Tensor]]:
        k = self.openness(times(t0, steps, reset, state_BS.device))
        return {"open_h": k, "open_c": k}

    def loop(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        inward = F.linear(x_TBI, self.weight_ih, self.bias_ih)
        k = self.openness(times(t0, len(x_TBI), reset, x_TBI.device))
        outputs, state = [], state_BS
        initial = None if reset is None else self.initial_state(x_TBI.shape[1])
        for i in range(len(x_TBI)):
            if reset is not None:
                state = torch.where(reset[i, :, None], initial, state)
            state = self.update(inward[i], state, k[i])
            outputs.append(state[:, : self.hidden_size])
        return torch.stack(outputs).to(x_TBI.dtype), state

    def extra_repr(self) -> str:
        shortest, longest = self.periods
        return (
            f"{self.input_size}, {self.hidden_size}, periods=({shortest:g}, {longest:g}),"
            f" open_ratio={self.open_ratio}, leak={self.leak}"
        )


@dataclass(frozen=True)
class PhasedConfig(CoreConfig, name="phased"):
    """LSTM whose units open at periods that they learn"""

    shortest_period: float = option(
        1.0, "shortest of the units' periods at the start", "STEPS", above=0
    )
    longest_period: float = option(1000.0, "longest of them", "STEPS", above=0)
    open_ratio: float = option(
        0.05, "part of its period in which a unit is open", "FRACTION", above=0
    )

    def build(self, input_size: int) -> Core:
        periods = self.shortest_period, self.longest_period
        return PhasedLSTM(input_size, self.hidden, periods=periods, open_ratio=self.open_ratio)
