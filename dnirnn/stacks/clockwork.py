"""Clockwork: modules that tick at their own periods, the slower ones feeding the faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dnirnn import ops
from dnirnn.cells import RNN
from dnirnn.checks import check_sequences, check_sizes, check_words
from dnirnn.core import Core, CoreConfig, has_hooks, step
from dnirnn.lstm import LSTM
from dnirnn.options import option

CELLS = {"rnn": RNN, "lstm": LSTM}


class Clockwork(Core):
    """A Clockwork RNN, or a clockwork LSTM: M modules of n = H / M units, one a period.

    Module i ticks at the steps t that ``periods[i]`` divides. Where it ticks, it reads the input,
    its own state, and the last output of every slower module; else it keeps its state (an LSTM's h and
    c), and costs nothing:

        h_i(t) = tanh(W_i [x(t), h_i+1(t-1), ..., h_M(t-1)] + b_i + U_i h_i(t-1) + b'_i)  at a tick
        h_i(t) = h_i(t-1)                                                                 elsewhere

    (cell="lstm": the same with :class:`dnirnn.LSTM`'s equations.) Nothing flows from fast to slow:
    the recurrence over all H units is block-triangular (:meth:`recurrent_weight`), and each module
    holds only the blocks that are not zero. So the fused operator runs the slowest module first,
    over its ticks alone, and then each faster one with the output of the slower ones among its inputs.
    That is so where all rows are at one t (an int); rows at different times, or with resets, go
    step by step, and every module is computed at every step.

    The output [B, H] is h_1, ..., h_M, the fastest first. The state concatenates the modules'
    states: h_1, h_2, ... (S = H), or h_1, c_1, h_2, c_2, ... (S = 2 H).

    periods: M distinct ints of at least 1, ascending.
    hidden_size: H, all modules together; a multiple of M.
    cell: "rnn" (tanh) or "lstm".

    Raises ValueError naming the argument that does not fit.

    Source: Koutnik et al., A Clockwork RNN, ICML 2014, section 3. Weights start as
    torch.nn.LSTM(I, H)'s do, uniform in (-1 / sqrt(H), 1 / sqrt(H)).
    """

    reads_t = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        periods: Sequence[int],
        cell: str = "rnn",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_sequences(periods=periods)
        check_words(tuple(CELLS), cell=cell)
        periods = tuple(periods)
        if not periods or list(periods) != sorted(set(periods)):
            raise ValueError(
                f"periods must be distinct ints of at least 1, ascending; got {list(periods)}"
            )
        if hidden_size % len(periods):
            raise ValueError(
                f"hidden_size must be a multiple of the {len(periods)} periods; got {hidden_size}"
            )
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, hidden_size
        self.periods, self.cell = periods, cell
        self.size = hidden_size // len(periods)
        self.parts = nn.ModuleList(
            CELLS[cell](input_size + slower * self.size, self.size, device=device, dtype=dtype)
            for slower in reversed(range(len(periods)))
        )
        self.state_size = sum(part.state_size for part in self.parts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        before = state_BS.chunk(len(self.periods), 1)
        outputs = [state[:, : self.size].to(x_BI.dtype) for state in before]
        after = []
        for i, (part, period, state) in enumerate(zip(self.parts, self.periods, before)):
            ticks = t % period == 0
            if ticks is not False:
                _, ticked = step(part, torch.cat([x_BI, *outputs[i + 1 :]], 1), state, t // period)
                state = ticked if ticks is True else torch.where(ticks[:, None], ticked, state)
            after.append(state)
        output = torch.cat([state[:, : self.size] for state in after], 1)
        return output.to(x_BI.dtype), torch.cat(after, 1)

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        lstm = self.cell == "lstm"
        fused = ops.fused_for(x_TBI) and (lstm or x_TBI.device.type == "cpu")
        fused = fused and not any(has_hooks(part) for part in self.parts.modules())
        if reset is not None or isinstance(t0, Tensor) or not fused:
            return super().forward(x_TBI, state_BS, t0, reset)
        weights = [weight for part in self.parts for weight in part.weights]
        return ops.clockwork(x_TBI, state_BS, weights, self.periods, t0)

    def recurrent_weight(self) -> Tensor:
        """The recurrence of all units as one matrix, [H, H], or [4 H, H] for an LSTM.

        Rows and columns are ordered as the output is; an LSTM's rows are those of its gates i, f, g
        and o in turn, as in torch.nn.LSTM. The blocks below the diagonal, from a faster module to a
        slower one, are zero. It is a copy, without gradient: for the eye.
        """
        count, size = len(self.periods), self.size
        gates = 4 if self.cell == "lstm" else 1
        blocks = next(self.parameters()).new_zeros(gates, count, size, self.hidden_size)
        for i, part in enumerate(self.parts):
            w_ih, w_hh = part.weights[:2]
            rows = torch.cat([w_hh, w_ih[:, self.input_size :]], 1).detach()
            blocks[:, i, :, i * size :] = rows.view(gates, size, -1)
        return blocks.view(gates * self.hidden_size, self.hidden_size)

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}"
        return f"{sizes}, periods={list(self.periods)}, cell={self.cell}"


@dataclass(frozen=True)
class ClockworkConfig(CoreConfig, name="clockwork"):
    """plain modules that tick at --periods"""

    cell: ClassVar[str] = "rnn"

    periods: tuple = option(
        (1, 2, 4, 8), "steps from one tick to the next, of each module, ascending", "STEPS",
        at_least=1, many=int,
    )  # fmt: skip

    @property
    def multiple(self) -> int:
        return len(self.periods)

    def build(self, input_size: int) -> Core:
        return Clockwork(input_size, self.hidden, self.periods, self.cell)


class ClockworkLSTMConfig(ClockworkConfig, name="clockwork-lstm"):
    """LSTM modules that tick at --periods"""

    cell = "lstm"
