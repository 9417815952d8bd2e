"""Deep: cores one on another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnirnn.checks import check_flags, check_probabilities, shown
from dnirnn.core import Core, CoreConfig, has_hooks, resets_to, step, unroll, with_t
from dnirnn.embedding import Embedded
from dnirnn.from_torch import FromTorch
from dnirnn.lstm import LSTM
from dnirnn.masks import Masks, draw_masks
from dnirnn.options import option
from dnirnn.unroll import Chunks, Unrolled


class Deep(Core):
    """Cores one on another: each reads, at every step, the output of the one below it.

    With y_0 = x and drop() for dropout, layer l = 1 .. L:

        y_1 = core_1(x)
        y_l = core_l(drop(y_{l-1}))            skip:     core_l([drop(y_{l-1}), x])
                                               residual: the above + y_{l-1}

    and the output is y_L. ``dropout`` zeroes elements between layers while training (never of x nor
    of the output), and divides what it keeps by 1 - dropout. Its masks are :class:`dnirnn.Masks`:
    one a step or, with ``same_mask``, one for a whole sequence (Gal and Ghahramani 2016).

    The state [B, S] is the concatenation of the cores' states. Layers run one after another, each
    over all steps of a call and all of its chunks, so that fused cores stay fused.

    cores: at least one; an nn.LSTM, nn.GRU or nn.RNN is taken as FromTorch has it. The input size of each is the output size of the one below; with ``skip``
        plus that of x. With ``residual`` all output sizes are one.
    dropout: a probability in [0, 1).

    Raises TypeError where a core is none, and ValueError where sizes don't fit, there is no core,
    or dropout is no probability.
    """

    reads_t = False

    def __init__(
        self,
        cores: Sequence[Core],
        *,
        residual: bool = False,
        skip: bool = False,
        dropout: float = 0.0,
        same_mask: bool = False,
    ):
        super().__init__()
        check_flags(residual=residual, skip=skip, same_mask=same_mask)
        check_probabilities(dropout=dropout)
        if not isinstance(cores, (Sequence, nn.ModuleList)):
            raise TypeError(f"cores must be a list of dnirnn.Cores; got {shown(cores)}")
        cores = [FromTorch(core) if isinstance(core, nn.RNNBase) else core for core in cores]
        for core in cores:
            if not isinstance(core, Core):
                raise TypeError(f"cores must be dnirnn.Cores; got a {type(core).__name__}")
        if not cores:
            raise ValueError("cores must be at least one; got none")
        for layer, (below, core) in enumerate(zip(cores, cores[1:]), 1):
            expected = below.output_size + (cores[0].input_size if skip else 0)
            if core.input_size != expected:
                raise ValueError(
                    f"cores[{layer}] must have input_size {expected}, what it reads;"
                    f" got {core.input_size}"
                )
            if residual and core.output_size != below.output_size:
                raise ValueError(
                    f"cores[{layer}] must have output_size {below.output_size}, what residual adds"
                    f" to it; got {core.output_size}"
                )
        self.cores = nn.ModuleList(cores)
        self.residual, self.skip, self.dropout = residual, skip, float(dropout)
        self.input_size, self.output_size = cores[0].input_size, cores[-1].output_size
        self.sizes = [core.state_size for core in cores]
        self.state_size = sum(self.sizes)
        self.masks = nn.ModuleList(
            Masks(core.output_size, dropout, same_mask).to(core.initial_state(1).device)
            for core in cores[:-1]
            if dropout
        )
        draw_masks(self.masks)  # each its own seed: two masks of one seed are the same mask
        # Dropout's masks are drawn for steps that are counted.
        self.takes_times = all(core.takes_times for core in cores) and not dropout

    def initial_state(self, batch_size: int) -> Tensor:
        return with_t(torch.cat([core.initial_state(batch_size) for core in self.cores], 1), 0)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        states = state_BS.split(self.sizes, 1)

        def run(layer: int, reads: Tensor) -> tuple[Tensor, Tensor]:
            output, state = step(self.cores[layer], reads[0], states[layer], t)
            return output[None], state

        output, state = self.through(x_BI[None], self.drawn(x_BI[None], t, None), run)
        return output[0], state

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not resets_to(self, Deep, reset):
            return super().forward(x_TBI, state_BS, t0, reset)
        states = state_BS.split(self.sizes, 1)

        def run(layer: int, reads: Tensor) -> tuple[Tensor, Tensor]:
            return self.cores[layer](reads, states[layer], t0, reset)

        return self.through(x_TBI, self.drawn(x_TBI, t0, reset), run)

    def unroll(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        chunks: Chunks,
        estimator: nn.Module | None = None,
    ) -> Unrolled:
        if not resets_to(self, Deep, chunks.reset):
            return super().unroll(x_TBI, state_BS, probe, chunks, estimator)
        # All layers are cut at the same steps: a chunk reads its own inputs from below, no other's.
        states = state_BS.split(self.sizes, 1)
        probes = [None] * len(self.cores) if probe is None else probe.split(self.sizes, 2)
        layers: list[Unrolled] = []

        def run(layer: int, reads: Tensor) -> tuple[Tensor, Tensor]:
            layers.append(unroll(self.cores[layer], reads, states[layer], probes[layer], chunks))
            return layers[-1].output, layers[-1].end

        masks = self.drawn(x_TBI, chunks.t0, chunks.reset)
        output, end = self.through(x_TBI, masks, run)

        def vjp(
            n: int, of_end: Tensor, of_output: Tensor | None = None
        ) -> tuple[Tensor, Tensor | None]:
            # From the top down: what a layer sends to its inputs is what its outputs below are sent.
            rows = slice(n * chunks.truncation, (n + 1) * chunks.truncation)
            ends, of_y = of_end.split(self.sizes, 1), of_output
            starts: list[Tensor] = []
            of_x: list[Tensor | None] = []
            for layer in reversed(range(len(layers))):
                own = layers[layer].vjp
                assert own is not None
                start, of_reads = own(n, ends[layer], of_y)
                starts.insert(0, start)
                if layer == 0:
                    of_x.append(of_reads)
                else:
                    assert of_reads is not None  # it goes back to a probe
                    width = self.cores[layer - 1].output_size
                    of_x.append(of_reads[..., width:] if self.skip else None)
                    below = of_reads[..., :width]
                    if masks:
                        below = below * masks[layer - 1][rows] / (1 - self.dropout)
                    of_y = below + of_y if self.residual and of_y is not None else below
            found = [part for part in of_x if part is not None] if x_TBI.requires_grad else []
            return torch.cat(starts, 1), sum(found) if found else None

        start = torch.cat([layer.start for layer in layers], 2) if chunks.dense else None
        return Unrolled(output, end, start, vjp if chunks.vjp else None)

    def takes_embedded(self, x: Embedded, reset: Tensor | None) -> bool:
        first = self.cores[0]
        alone = not self.skip and not has_hooks(first) and resets_to(self, Deep, reset)
        return alone and first.takes_embedded(x, reset)

    def exports_whole(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        return resets_to(self, Deep, reset)

    def through(
        self,
        x_TBI: Tensor,
        masks: Sequence[Tensor],
        run: Callable[[int, Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Layer by layer, where run(layer, what it reads) -> (outputs, states [..., S_l])."""
        below, states = x_TBI, []
        for layer in range(len(self.cores)):
            reads = below * masks[layer - 1] / (1 - self.dropout) if layer and masks else below
            if layer and self.skip:
                reads = torch.cat([reads, x_TBI], 2)
            output, state = run(layer, reads)
            below = output + below if layer and self.residual else output
            states.append(state)
        return below, torch.cat(states, -1)

    def drawn(self, x_TBI: Tensor, t0: int | Tensor, reset: Tensor | None) -> list[Tensor]:
        """The masks [T, B, O_l] above the layers but the last; none where nothing is dropped."""
        steps, batch, _ = x_TBI.shape
        drops = self.training and self.dropout
        return [mask(batch, t0, steps, reset) for mask in self.masks] if drops else []

    def extra_repr(self) -> str:
        return f"residual={self.residual}, skip={self.skip}, dropout={self.dropout}"


@dataclass(frozen=True)
class DeepConfig(CoreConfig, name="deep"):
    """LSTMs one on another, with --residual, --skip-inputs, --layer-dropout"""

    layers: int = option(2, "recurrent layers, one on the other", "LAYERS", at_least=1)
    residual: bool = option(False, "add the output of the layer below to a layer's own")
    skip_inputs: bool = option(False, "every layer also reads the network's input")
    layer_dropout: float = option(
        0.0, "fraction of a layer's output to the next that training drops", "FRACTION",
        at_least=0, below=1,
    )  # fmt: skip
    same_mask: bool = option(False, "--layer-dropout drops the same in all of a sequence")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.same_mask and not self.layer_dropout:
            raise ValueError("--same-mask goes with --layer-dropout only")

    def build(self, input_size: int) -> Core:
        above = self.hidden + (input_size if self.skip_inputs else 0)
        return Deep(
            [LSTM(width, self.hidden) for width in (input_size, *[above] * (self.layers - 1))],
            residual=self.residual,
            skip=self.skip_inputs,
            dropout=self.layer_dropout,
            same_mask=self.same_mask,
        )
