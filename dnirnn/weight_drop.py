"""WeightDrop: a core whose hidden-to-hidden weights lose elements while training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.func import functional_call

from dnirnn.checks import check_probabilities, shown
from dnirnn.core import Core, CoreConfig, check_core, resets_to, step, unroll
from dnirnn.masks import Masks, draw_masks
from dnirnn.options import option
from dnirnn.unroll import Chunks, Unrolled


class WeightDrop(Core):
    """Any core, run with M * W / (1 - drop) in the place of its hidden-to-hidden weights W.

    M is 0 with probability ``drop``, else 1, drawn for each element of W: one mask for a whole
    sequence and for all of its batch, until :func:`dnirnn.draw_masks` draws another. In eval mode W
    itself is used. The core runs on the path that it would run on alone. The raw weights are the
    parameters, under ``core.``; state and output are the core's.

    drop: a probability in [0, 1).
    names: the parameters of ``core`` to drop from; by default those with "weight_hh" in their name.

    Raises TypeError where ``core`` is no Core, and ValueError for a drop outside [0, 1), a name
    that is no parameter's, or a core without hidden-to-hidden weights by the default.

    Source: Merity et al. 2018 (Regularizing and Optimizing LSTM Language Models, section 2), after
    Wan et al. 2013 (DropConnect).
    """

    reads_t = False

    def __init__(self, core: Core, drop: float, names: Sequence[str] | None = None):
        super().__init__()
        check_core(core=core)
        check_probabilities(drop=drop)
        parameters = dict(core.named_parameters())
        if names is None:
            names = [name for name in parameters if "weight_hh" in name]
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(f"names must be a list of the core's parameters; got {shown(names)}")
        if not names or not set(names) <= set(parameters):
            raise ValueError(
                "names must be one or more of the core's parameters, by default those with"
                f' "weight_hh" in their name; got {[*names]}, of {[*parameters]}'
            )
        self.core, self.drop, self.names = core, float(drop), list(names)
        self.input_size, self.output_size = core.input_size, core.output_size
        self.state_size = core.state_size
        self.calls = (Call(core),)  # in a tuple: its parameters are this module's already
        self.masks = nn.ModuleList(
            Masks(parameters[name].numel(), drop, over_time=True).to(parameters[name].device)
            for name in self.names
        )
        draw_masks(self.masks)  # each its own seed: two masks of one seed are the same mask

    def initial_state(self, batch_size: int) -> Tensor:
        return self.core.initial_state(batch_size)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        return self.dropped("step", x_BI, state_BS, t)

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not resets_to(self, WeightDrop, reset):
            return super().forward(x_TBI, state_BS, t0, reset)
        return self.dropped("forward", x_TBI, state_BS, t0, reset)

    def unroll(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        chunks: Chunks,
        estimator: nn.Module | None = None,
    ) -> Unrolled:
        if not resets_to(self, WeightDrop, chunks.reset):
            return super().unroll(x_TBI, state_BS, probe, chunks, estimator)
        return self.dropped("unroll", x_TBI, state_BS, probe, chunks, estimator)

    def exports_whole(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        return resets_to(self, WeightDrop, reset)

    def dropped(self, method: str, *arguments):
        """``core.method(*arguments)``, with the weights that a mask has gone over."""
        if not self.training:
            return self.calls[0](method, *arguments)
        parameters = dict(self.core.named_parameters())
        weights = {}
        for name, masks in zip(self.names, self.masks):
            weight = parameters[name]
            kept = masks(1, 0).view_as(weight)
            weights[f"core.{name}"] = weight * kept / (1 - self.drop)
        return functional_call(self.calls[0], weights, (method, *arguments))

    def extra_repr(self) -> str:
        return f"drop={self.drop}, names={self.names}"


class Call(nn.Module):
    """The methods of a core behind a module's forward: what functional_call can call."""

    def __init__(self, core: Core):
        super().__init__()
        self.core = core

    def forward(self, method: str, *arguments):
        if method == "forward":
            return self.core(*arguments)
        if method == "step":
            return step(self.core, *arguments)
        return unroll(self.core, *arguments)


@dataclass(frozen=True)
class DroppedConfig(CoreConfig):
    """A core that may be in a WeightDrop."""

    weight_drop: float = option(
        0.0, "fraction of the hidden-to-hidden weights that training drops for a whole sequence",
        "FRACTION", at_least=0, below=1,
    )  # fmt: skip

    def dropped(self, core: Core) -> Core:
        return WeightDrop(core, self.weight_drop) if self.weight_drop else core


@dataclass(frozen=True)
class LayeredConfig(DroppedConfig):
    """kind(input_size, hidden, layers)."""

    kind: ClassVar[Callable[[int, int, int], Core]]

    layers: int = option(1, "recurrent layers, one on the other", "LAYERS", at_least=1)

    def build(self, input_size: int) -> Core:
        return self.dropped(type(self).kind(input_size, self.hidden, self.layers))
