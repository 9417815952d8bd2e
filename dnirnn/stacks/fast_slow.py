"""FastSlow: several fast cells a step that hand one state on, and a slow one between them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.cells.chain import READS_X, Link, lstm_cells
from dnirnn.cells.fused import Fused
from dnirnn.cells.norm_lstm import NormLSTM, ZoneoutConfig
from dnirnn.checks import check_probabilities, check_sizes
from dnirnn.core import Core, has_hooks
from dnirnn.masks import Masks, draw_masks
from dnirnn.options import option

FAST, SLOW = 0, 1  # the parts of the state


class FastSlow(Fused):
    """A Fast-Slow RNN of k fast cells F_1, ..., F_k and one slow cell S, each a NormLSTM.

    One fast state (h, and c with it) runs through all fast cells within a step, and from the last
    of them to the first one of the next step; the slow cell has its own, and is run once a step:

        h_1(t) = f_1(h_k(t-1), x(t))
        h_S(t) = f_S(h_S(t-1), h_1(t))
        h_2(t) = f_2(h_1(t), h_S(t))
        h_i(t) = f_i(h_i-1(t))           for 3 <= i <= k: these cells have recurrent weights only

    The output [B, F] is h_k. The state [B, 2 F + 2 S] is h_k, c_k, h_S, c_S. Layer normalisation
    and zoneout are :class:`dnirnn.NormLSTM`'s, in every cell. Dropout, another mask at every step,
    strikes what is not recurrent: x, h_1 on its way to S, h_S on its way to F_2, and the output.
    Masks are :class:`dnirnn.Masks`, and none applies in eval mode. On the CPU the loop over steps and
    cells is a fused operator's, elsewhere torch's.

    fast_size, slow_size: F, S.
    fast_cells: k, at least 2.
    zoneout_h, zoneout_c, dropout: probabilities in [0, 1).

    The authors' FS-LSTM-2 for characters of Penn Treebank (7.2 million parameters, with embedding
    and softmax) is FastSlow(128, 700, 400, 2, zoneout_h=0.1, zoneout_c=0.5, dropout=0.35). Their
    FS-LSTM-4 has 6.5 million; so has FastSlow(128, 500, 400, 4).

    Raises ValueError naming the argument that does not fit.

    Source: Mujika et al., Fast-Slow Recurrent Neural Networks, NIPS 2017, sections 3 and 4; dropout
    where the authors' program has it.
    """

    reads_t = False

    def __init__(
        self,
        input_size: int,
        fast_size: int,
        slow_size: int,
        fast_cells: int = 2,
        *,
        layer_norm: bool = True,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(input_size=input_size, fast_size=fast_size, slow_size=slow_size)
        check_sizes(2, fast_cells=fast_cells)
        check_probabilities(zoneout_h=zoneout_h, zoneout_c=zoneout_c, dropout=dropout)

        def cell(width: int, size: int) -> NormLSTM:
            return NormLSTM(
                width, size, layer_norm=layer_norm, zoneout_h=zoneout_h, zoneout_c=zoneout_c,
                device=device, dtype=dtype,
            )  # fmt: skip

        self.input_size, self.output_size = input_size, fast_size
        self.fast_size, self.slow_size, self.dropout = fast_size, slow_size, dropout
        self.state_size = 2 * fast_size + 2 * slow_size
        self.slow = cell(fast_size, slow_size)
        widths = [input_size, slow_size, *[1] * (fast_cells - 2)]
        self.fast = nn.ModuleList(cell(width, fast_size) for width in widths)
        for further in self.fast[2:]:
            further.weight_ih_l0, further.input_size = None, 0  # it takes no input
        wires = dict(x=input_size, fast=fast_size, slow=slow_size, output=fast_size)
        self.masks = nn.ModuleDict(
            {name: Masks(size, dropout).to(device) for name, size in wires.items() if dropout}
        )
        draw_masks(self)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        output, state = self.loop(x_BI[None], state_BS, t, None)
        return output[0], state

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_hooks()
        return super().forward(x_TBI, state_BS, t0, reset)

    def check_hooks(self) -> None:
        hooked = next((name for name, part in self.named_modules() if name and has_hooks(part)), None)
        if hooked:
            raise RuntimeError(
                f"{hooked} has a hook, which would not run: FastSlow computes its cells itself;"
                " hooks of the whole core run, and parametrisations of its cells' weights count"
            )

    def fused(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        truncation: int,
        t0: int | Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        self.check_hooks()
        steps, batch, _ = x_TBI.shape
        dropped = {
            name: masks(batch, t0, steps, reset).to(state_BS.dtype) / (1 - self.dropout)
            for name, masks in self.masks.items()
            if self.training
        }

        def link(cell: NormLSTM, part: int, reads: list[int], mask: str = "") -> Link:
            options = cell.options(state_BS, steps, t0, reset)
            inward = [cell.weight_ih_l0] if reads else []
            bias = cell.bias_ih_l0 + cell.bias_hh_l0
            weights = [cell.weight_hh_l0, *inward, bias]
            return Link(part, reads, weights, masks=[dropped.get(mask)] * len(reads), **options)

        first, second, *further = self.fast
        links = [
            link(first, FAST, [READS_X], "x"),
            link(self.slow, SLOW, [FAST], "fast"),
            link(second, FAST, [SLOW], "slow"),
            *(link(cell, FAST, []) for cell in further),
        ]
        output, end = lstm_cells(x_TBI, state_BS, probe, links, truncation, reset=reset)
        return output * dropped["output"] if dropped else output, end

    def loop(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        times = (x_TBI.shape[1], t0, len(x_TBI), reset)
        kept = {name: masks(*times) for name, masks in self.masks.items() if self.training}

        def dropped(name: str, value: Tensor, i: int | slice = slice(None)) -> Tensor:
            return value * kept[name][i] / (1 - self.dropout) if name in kept else value

        first, second, *further = self.fast
        zoned_slow, zoned_fast = self.slow.kept(*times), [cell.kept(*times) for cell in self.fast]
        inward = F.linear(dropped("x", x_TBI), first.weight_ih_l0)
        nothing = inward.new_zeros(4 * self.fast_size)
        sizes = [self.fast_size] * 2 + [self.slow_size] * 2
        h, c, h_slow, c_slow = state_BS.split(sizes, 1)
        if reset is not None:
            initial = self.initial_state(x_TBI.shape[1]).split(sizes, 1)
        outputs = []
        for i, zoned in enumerate(zip(*zoned_fast)):
            if reset is not None:
                h, c, h_slow, c_slow = (
                    torch.where(reset[i, :, None], fresh, part)
                    for fresh, part in zip(initial, (h, c, h_slow, c_slow))
                )
            h, c = first.cell(inward[i], h, c, zoned[0])
            upward = F.linear(dropped("fast", h, i).to(inward.dtype), self.slow.weight_ih_l0)
            h_slow, c_slow = self.slow.cell(upward, h_slow, c_slow, zoned_slow[i])
            downward = F.linear(dropped("slow", h_slow, i).to(inward.dtype), second.weight_ih_l0)
            h, c = second.cell(downward, h, c, zoned[1])
            for cell, mask in zip(further, zoned[2:]):
                h, c = cell.cell(nothing, h, c, mask)
            outputs.append(h)
        output = dropped("output", torch.stack(outputs)).to(x_TBI.dtype)
        return output, torch.cat([h, c, h_slow, c_slow], 1)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.fast_size}, {self.slow_size}, dropout={self.dropout}"


@dataclass(frozen=True)
class FastSlowConfig(ZoneoutConfig, name="fast-slow"):
    """LSTMs that tick several times a step, and one that ticks once"""

    fast_cells: int = option(2, "its fast cells, each ticking once a step", "CELLS", at_least=2)
    slow_hidden: int | None = option(
        None, "size of its slow cell", "UNITS", at_least=1,
        shown="4/7 of --hidden, the size of the fast ones",
    )  # fmt: skip
    layer_dropout: float = option(
        0.0, "fraction of a cell's output to the next, of inputs and of outputs that training drops",
        "FRACTION", at_least=0, below=1,
    )  # fmt: skip

    def build(self, input_size: int) -> Core:
        return FastSlow(
            input_size,
            self.hidden,
            self.slow_hidden or max(1, round(self.hidden * 4 / 7)),  # the paper's 700 and 400
            self.fast_cells,
            layer_norm=not self.no_layer_norm,
            zoneout_h=self.zoneout_h,
            zoneout_c=self.zoneout_c,
            dropout=self.layer_dropout,
        )
