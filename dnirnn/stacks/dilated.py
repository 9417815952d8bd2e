"""Dilated: layers that recur from a step further back each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnirnn.cells.gru import GRU
from dnirnn.cells.rnn import RNN
from dnirnn.checks import check_sequences, check_sizes, check_words
from dnirnn.core import Core, CoreConfig, step
from dnirnn.lstm import LSTM
from dnirnn.options import option
from dnirnn.stacks.deep import Deep

CELLS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class Dilated(Deep):
    """The dilated recurrent network: layer l recurs from the state d_l steps ago.

        s_t^l, y_t^l = cell_l(y_t^{l-1}, s_{t-d_l}^l),  y_t^0 = x_t

    States before the sequence's start are zero; the output is the last layer's. Each layer keeps
    its last d_l states, oldest first: the state [B, S] is layer 0's, then layer 1's, ..., and S the
    sum of d_l * H (2 H for "lstm"). Between two steps that are d_l apart nothing recurs, so a layer
    runs over T steps in T / d_l steps on d_l * B rows; T may be below d_l.

    input_size, hidden_size: I, and H of every layer.
    dilations: d_l of each layer, from the lowest; the paper's are 1, 2, 4, ...
    cell: "rnn", "gru" or "lstm": :class:`dnirnn.RNN`, :class:`dnirnn.GRU`, :class:`dnirnn.LSTM`.

    Raises ValueError for another cell, or where dilations is empty or has one below 1.

    Source: Chang et al., Dilated Recurrent Neural Networks, NeurIPS 2017, section 2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        dilations: Sequence[int],
        cell: str = "rnn",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_words(tuple(CELLS), cell=cell)
        check_sequences(dilations=dilations)
        if not dilations:
            raise ValueError(f"dilations must be ints of at least 1, one a layer; got {dilations}")
        widths = [input_size] + [hidden_size] * (len(dilations) - 1)
        super().__init__(
            [
                Dilate(CELLS[cell](width, hidden_size, device=device, dtype=dtype), dilation)
                for width, dilation in zip(widths, dilations)
            ]
        )


class Dilate(Core):
    """A cell, of which t is not asked, recurring from its state ``dilation`` steps ago.

    The state is the cell's last ``dilation`` states, oldest first, so that no phase is needed.
    """

    reads_t = False

    def __init__(self, cell: Core, dilation: int):
        super().__init__()
        self.cell, self.dilation = cell, dilation
        self.input_size, self.output_size = cell.input_size, cell.output_size
        self.state_size = dilation * cell.state_size

    def initial_state(self, batch_size: int) -> Tensor:
        return self.cell.initial_state(batch_size).repeat(1, self.dilation)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        oldest, others = state_BS.tensor_split([self.cell.state_size], 1)
        output, newest = step(self.cell, x_BI, oldest, t)
        return output, torch.cat([others, newest], 1)

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        (steps, batch, _), d = x_TBI.shape, self.dilation
        states = state_BS.view(batch, d, -1).transpose(0, 1)
        last, forgets = None, None
        if reset is not None:
            # A step starts anew where its row was reset within the d steps that end with it.
            index = torch.arange(steps, device=reset.device)[:, None]
            last = torch.where(reset, index, -d).cummax(0).values
            forgets = last > index - d
        outputs = []
        # d steps don't depend on one another: they are d * B rows of one step.
        for begin, rounds, width in ((0, steps // d, d), (steps - steps % d, 1, steps % d)):
            if not rounds * width:
                continue
            rows = slice(begin, begin + rounds * width)

            def fold(tensor: Tensor) -> Tensor:
                return tensor[rows].reshape(rounds, width * batch, *tensor.shape[2:])

            folded = None if forgets is None else fold(forgets)
            started = states[:width].reshape(width * batch, -1)
            output, ended = self.cell(fold(x_TBI), started, 0, folded)
            outputs.append(output.view(rounds * width, batch, -1))
            ended = ended.view(width, batch, -1)
            states = ended if width == d else torch.cat([states[width:], ended])
        if last is not None:
            ages = torch.arange(steps - d, steps, device=last.device)[:, None]
            fresh = self.initial_state(batch).view(batch, d, -1).transpose(0, 1)
            states = torch.where((last[-1] > ages)[..., None], fresh, states)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output, states.transpose(0, 1).reshape(batch, -1)

    def extra_repr(self) -> str:
        return f"dilation={self.dilation}"


@dataclass(frozen=True)
class DilatedConfig(CoreConfig, name="dilated"):
    """layers that recur from --dilations steps back"""

    dilations: tuple = option(
        (1, 2, 4, 8), "how many steps back each layer recurs from, from the lowest", "STEPS",
        at_least=1, many=int,
    )  # fmt: skip
    cell: str = option("lstm", "what its layers are", choices=tuple(CELLS))

    def build(self, input_size: int) -> Core:
        return Dilated(input_size, self.hidden, self.dilations, self.cell)
