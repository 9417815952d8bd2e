"""NormLSTM: an LSTM layer with layer normalisation, zoneout and recurrent dropout."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.cells.gated import GatedLSTM
from dnirnn.checks import check_flags, check_probabilities, check_sizes
from dnirnn.core import Core, CoreConfig
from dnirnn.masks import Masks, draw_masks
from dnirnn.options import option
from dnirnn.weight_drop import DroppedConfig


class NormLSTM(GatedLSTM):
    """One LSTM layer, with what regularises it.

    With norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5) over the H units of one gate, and gates i, f,
    g, o in this order in the rows of the weights:

        a      = W_ih x + W_hh h
        a_k    = gain_k * norm(a_k) + b_ih,k + b_hh,k   for each gate k (without layer_norm:
                                                        a_k + b_ih,k + b_hh,k)
        i, f, o = sigmoid(a_i, a_f, a_o),  g = drop(tanh(a_g))
        c~ = f * c + i * g
        h~ = o * tanh(gain_c * norm(c~) + bias_c)       (without layer_norm: o * tanh(c~))
        c' = c where zoneout_c strikes, else c~;  h' = h where zoneout_h strikes, else h~

    So each gate is normalised by itself, over the sum of both products, and the biases are the
    normalisation's own: the placement of the Fast-Slow RNN's cell. (Ba et al. normalise each of the
    two products, over all gates at once.) With everything off it is dnirnn.LSTM.

    Zoneout keeps a unit's old value with its probability while training, and takes the expectation,
    z * old + (1 - z) * new, in eval mode. Recurrent dropout zeroes elements of g, and divides what
    it keeps by 1 - recurrent_dropout; in eval mode nothing is zeroed. Their masks are
    :class:`dnirnn.Masks`: one a step. On the CPU it runs on a fused operator, elsewhere as a loop
    over steps in torch.

    The state [B, 2 H] is h, c, as dnirnn.LSTM's, and stays float32 where x is bfloat16; the output
    [B, H] is h'. Parameters have torch.nn.LSTM's names; layer_norm adds gain_l0 [4H], gain_c_l0 [H]
    and bias_c_l0 [H]. They start as torch.nn.LSTM's; with layer_norm the gains start at 1, and the
    biases at 0 but the forget gate's at 1.

    input_size, hidden_size: I, H, each at least 1.
    zoneout_h, zoneout_c, recurrent_dropout: probabilities in [0, 1).

    Raises ValueError where one is not.

    Source: Ba et al. 2016 (layer normalisation, section 3.1); Mujika et al. 2017 (Fast-Slow RNN);
    Krueger et al. 2017 (zoneout, section 3); Semeniuta et al. 2016 (recurrent dropout, section 3).
    """

    reads_t = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        layer_norm: bool = True,
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        recurrent_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_sizes(input_size=input_size, hidden_size=hidden_size)
        check_flags(layer_norm=layer_norm)
        drops = {
            "zoneout_h": zoneout_h,
            "zoneout_c": zoneout_c,
            "recurrent_dropout": recurrent_dropout,
        }
        check_probabilities(**drops)
        self.input_size, self.output_size = input_size, hidden_size
        self.hidden_size, self.state_size = hidden_size, 2 * hidden_size
        self.layer_norm, self.drops = layer_norm, drops
        shapes = {
            "weight_ih_l0": (4 * hidden_size, input_size),
            "weight_hh_l0": (4 * hidden_size, hidden_size),
            "bias_ih_l0": (4 * hidden_size,),
            "bias_hh_l0": (4 * hidden_size,),
        }
        if layer_norm:
            shapes["gain_l0"] = (4 * hidden_size,)
            shapes["gain_c_l0"] = shapes["bias_c_l0"] = (hidden_size,)
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters()
        self.masks = nn.ModuleDict(
            {name: Masks(hidden_size, drop).to(device) for name, drop in drops.items() if drop}
        )
        draw_masks(self)  # each its own seed: two masks of one seed are the same mask

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if self.layer_norm and not name.startswith("weight"):
                nn.init.constant_(parameter, float(name.startswith("gain")))
            else:
                nn.init.uniform_(parameter, -bound, bound)
        if self.layer_norm:
            nn.init.ones_(self.bias_ih_l0.detach()[self.hidden_size : 2 * self.hidden_size])

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        h, c = state_BS.chunk(2, 1)
        (kept,) = self.kept(len(x_BI), t)
        h, c = self.cell(F.linear(x_BI, self.weight_ih_l0), h, c, kept)
        return h.to(x_BI.dtype), torch.cat([h, c], 1)

    @property
    def weights(self) -> list[Tensor]:
        return [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]

    def options(
        self, state_BS: Tensor, steps: int, t0: int | Tensor, reset: Tensor | None
    ) -> dict[str, Tensor | list[Tensor]]:
        options: dict[str, Tensor | list[Tensor]] = {}
        if self.layer_norm:
            norm = [self.gain_l0, self.gain_c_l0, self.bias_c_l0]
            options["norm"] = [parameter.to(state_BS.dtype) for parameter in norm]
        for name, kind in (
            ("zoneout_h", "open_h"),
            ("zoneout_c", "open_c"),
            ("recurrent_dropout", "factor"),
        ):
            drop = self.drops[name]
            if not drop or (kind == "factor" and not self.training):
                continue
            if not self.training:
                options[kind] = state_BS.new_full((1, 1, 1), 1 - drop)
                continue
            kept = self.masks[name](len(state_BS), t0, steps, reset).to(state_BS.dtype)
            options[kind] = kept / (1 - drop) if kind == "factor" else kept
        return options

    def loop(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        steps, batch, _ = x_TBI.shape
        h, c = state_BS.chunk(2, 1)
        inward = F.linear(x_TBI, self.weight_ih_l0).unbind()
        outputs = []
        initial = None if reset is None else self.initial_state(batch)
        for i, kept in enumerate(self.kept(batch, t0, steps, reset)):
            if reset is not None:
                h, c = torch.where(reset[i, :, None], initial, torch.cat([h, c], 1)).chunk(2, 1)
            h, c = self.cell(inward[i], h, c, kept)
            outputs.append(h)
        return torch.stack(outputs).to(x_TBI.dtype), torch.cat([h, c], 1)

    def kept(
        self, batch: int, t0: int | Tensor, steps: int = 1, reset: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """The masks [B, H] of each step by their names; none in eval mode."""
        if not self.training:
            return [{}] * steps
        drawn = {name: masks(batch, t0, steps, reset) for name, masks in self.masks.items()}
        return [{name: mask[i] for name, mask in drawn.items()} for i in range(steps)]

    def cell(
        self, inward: Tensor, h: Tensor, c: Tensor, kept: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(h', c'), where ``inward`` is W_ih x."""
        a = torch.addmm(inward, h.to(inward.dtype), self.weight_hh_l0.t()).to(c.dtype)
        if self.layer_norm:
            a = norm(a.view(-1, 4, self.hidden_size)).flatten(1) * self.gain_l0
        i, f, g, o = (a + (self.bias_ih_l0 + self.bias_hh_l0)).chunk(4, 1)
        g = torch.tanh(g)
        if "recurrent_dropout" in kept:
            g = g * kept["recurrent_dropout"] / (1 - self.drops["recurrent_dropout"])
        c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * g
        squashed = norm(c_new) * self.gain_c_l0 + self.bias_c_l0 if self.layer_norm else c_new
        h_new = torch.sigmoid(o) * torch.tanh(squashed)
        return self.zoned("zoneout_h", h, h_new, kept), self.zoned("zoneout_c", c, c_new, kept)

    def zoned(self, name: str, old: Tensor, new: Tensor, kept: dict[str, Tensor]) -> Tensor:
        if not self.drops[name]:
            return new
        if name in kept:
            return torch.where(kept[name], new, old)
        return torch.lerp(new, old, self.drops[name])

    def extra_repr(self) -> str:
        options = "".join(f", {name}={drop}" for name, drop in self.drops.items() if drop)
        return f"{self.input_size}, {self.hidden_size}, layer_norm={self.layer_norm}{options}"


def norm(a: Tensor) -> Tensor:
    return F.layer_norm(a, a.shape[-1:])


@dataclass(frozen=True)
class NormConfig(CoreConfig):
    no_layer_norm: bool = option(False, "leave out the layer normalisation")


@dataclass(frozen=True)
class ZoneoutConfig(NormConfig):
    zoneout_h: float = option(
        0.0, "fraction of the units of h that keep their old value in a step of training",
        "FRACTION", at_least=0, below=1,
    )  # fmt: skip
    zoneout_c: float = option(0.0, "the same for c", "FRACTION", at_least=0, below=1)


@dataclass(frozen=True)
class NormLSTMConfig(ZoneoutConfig, DroppedConfig, name="norm-lstm"):
    """LSTM with layer normalisation"""

    recurrent_dropout: float = option(
        0.0, "fraction of an LSTM's new values g that training drops", "FRACTION", at_least=0, below=1
    )

    def build(self, input_size: int) -> Core:
        core = NormLSTM(
            input_size,
            self.hidden,
            layer_norm=not self.no_layer_norm,
            zoneout_h=self.zoneout_h,
            zoneout_c=self.zoneout_c,
            recurrent_dropout=self.recurrent_dropout,
        )
        return self.dropped(core)
