"""HMLSTM: layers that learn when a stretch of the input ends, and tick only there."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import ops
from dnirnn.cells.chain import READS_X, Link, lstm_cells
from dnirnn.cells.fused import Fused
from dnirnn.cells.norm_lstm import NormConfig
from dnirnn.checks import check_flags, check_positive, check_sizes
from dnirnn.core import Core
from dnirnn.options import option

STEEPEST = 5.0  # slope of a detector's gradient, as in the paper


class HMLSTM(Fused):
    """The hierarchical multiscale LSTM: L LSTM layers, each but the top one with a detector.

    A detector z of layer l is 1 where a stretch of what the layer reads ended at this step:
    the layer above then reads the layer's h, and at the next step the layer itself starts afresh.
    With layers l = 1..L from the bottom, z_t^0 = 1, h_t^0 = x_t, and z_t^L = 0:

        s = U^l h_{t-1}^l  +  z_{t-1}^l V^l h_{t-1}^{l+1}  +  z_t^{l-1} W^l h_t^{l-1}  +  b^l
        i, f, o = sigmoid(s),  g = tanh(s),  z~ = max(0, min(1, (slope s + 1) / 2))
        z_t = 1 if z~ > 0.5, else 0

        COPY     z_{t-1}^l = 0, z_t^{l-1} = 0:   c_t = c_{t-1},          h_t = h_{t-1}
        UPDATE   z_{t-1}^l = 0, z_t^{l-1} = 1:   c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
        FLUSH    z_{t-1}^l = 1:                  c_t = i g,              h_t = o tanh(c_t)

    A detector has an output at every step, after a COPY too. Its gradient is straight-through: that of
    z~, as if it had not been rounded. What the layers do with it is differentiated in the form

        copy = (1 - z_{t-1}^l) (1 - z_t^{l-1}),  keep = (1 - z_{t-1}^l) z_t^{l-1}
        c_t = (copy + keep f) c_{t-1} + (1 - copy) i g
        h_t = copy h_{t-1} + (1 - copy) o tanh(c_t)

    The output [B, O] is the paper's gated mixture of the layers, with scalar gates:

        r^l = sigmoid(w^l [h^1 ... h^L]),  output = relu(sum_l r^l E^l h^l)

    The state [B, 2 L H + L - 1] is h^1, c^1, ..., h^L, c^L, then z^1 ... z^{L-1}, which are exactly
    0 or 1. On the CPU the loop over steps and layers is a fused operator's, elsewhere torch's. A sequence
    starts from zeros, detectors included (the paper leaves it open): the bottom
    layer's first step is then the same as after a FLUSH, and a layer above keeps its zeros until
    the one below first detects something.

    input_size, hidden_size, num_layers: I, H, at least 1, and L, at least 2.
    output_size: O, units of the mixture (the paper's output embedding), at least 1; None: H.
    slope: of the hard sigmoid, above 0; it changes gradients, never values. A buffer, which a
        checkpoint holds: to anneal it, ``core.slope.fill_(min(5, 1 + 0.04 * epoch))``.
    layer_norm: normalises each of the four gates' s over its H units, with a gain and a shift of
        their own; a detector, one unit, is not normalised. (The paper normalises "the models" and
        leaves open where.)

    Raises ValueError for sizes or a slope that do not fit.

    The paper's models are HMLSTM(128, 512, layer_norm=True) for Penn Treebank and
    HMLSTM(128, 1024, layer_norm=True, output_size=2048) for Text8 and Wikipedia.

    Source: Chung, Ahn and Bengio, Hierarchical Multiscale Recurrent Neural Networks, ICLR 2017,
    equations 1 to 9, and the output module of section 4.1, 11 and 12.
    """

    reads_t = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 3,
        *,
        output_size: int | None = None,
        slope: float = 1.0,
        layer_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        output_size = hidden_size if output_size is None else output_size
        check_sizes(input_size=input_size, hidden_size=hidden_size, output_size=output_size)
        check_sizes(2, num_layers=num_layers)
        check_positive(slope=slope)
        check_flags(layer_norm=layer_norm)
        self.input_size, self.output_size = input_size, output_size
        self.hidden_size, self.num_layers, self.layer_norm = hidden_size, num_layers, layer_norm
        self.state_size = 2 * num_layers * hidden_size + num_layers - 1
        made = {"device": device, "dtype": dtype}

        def parameter(name: str, *shape: int) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **made)))

        for layer in range(num_layers):
            top = layer == num_layers - 1
            rows = 4 * hidden_size + (not top)  # i, f, g, o, then the detector
            parameter(f"weight_ih_l{layer}", rows, input_size if layer == 0 else hidden_size)
            parameter(f"weight_hh_l{layer}", rows, hidden_size)
            if not top:
                parameter(f"weight_top_l{layer}", rows, hidden_size)
            parameter(f"bias_l{layer}", rows)
            if layer_norm:
                parameter(f"gain_l{layer}", 4 * hidden_size)
                parameter(f"shift_l{layer}", 4 * hidden_size)
        self.gates = nn.Linear(num_layers * hidden_size, num_layers, bias=False, **made)
        self.mix = nn.Linear(num_layers * hidden_size, output_size, bias=False, **made)
        self.register_buffer("slope", torch.tensor(float(slope), device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in (-1 / sqrt(H), 1 / sqrt(H)); the layer norm's gains are 1, its shifts 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith(("gain", "shift")):
                nn.init.constant_(parameter, float(name.startswith("gain")))
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        read = F.linear(x_BI, self.weight_ih_l0, self.bias_l0)
        state = self.tick(read, state_BS, self.joined_weights())
        return self.output(state), state

    def loop(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        states = self.states(x_TBI, state_BS, reset)
        return self.output(states), states[-1]

    def fused(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        truncation: int,
        t0: int | Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        h, _, end = self.layers(x_TBI, state_BS, probe, truncation, reset)
        return self.mixture(h), end

    def layers(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        truncation: int,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(h [T, B, L H] of all layers, z [T, B, L - 1], the chunks' ends), by the operator."""

        def link(layer: int) -> Link:
            bottom, top = layer == 0, layer == self.num_layers - 1
            reads = [READS_X if bottom else layer - 1, *([] if top else [layer + 1])]
            names = ["weight_hh", "weight_ih", *([] if top else ["weight_top"]), "bias"]
            norm = ["gain", "shift"] if self.layer_norm else []

            def own(names: list[str]) -> list[Tensor]:
                return [getattr(self, f"{name}_l{layer}") for name in names]

            vectors = [vector.to(state_BS.dtype) for vector in own(norm)]
            return Link(layer, reads, own(names), vectors)

        links = [link(layer) for layer in range(self.num_layers)]
        output, end = lstm_cells(
            x_TBI, state_BS, probe, links, truncation, slope=self.slope, reset=reset
        )
        sizes = [self.num_layers * self.hidden_size, self.num_layers - 1]
        h, z = output.split(sizes, 2)
        return h, z, end

    def detectors(
        self, x_TBI: Tensor, state_BS: Tensor, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z [T, B, L - 1] of each step, from the bottom layer up; last state [B, S])."""
        if self.fused_for(x_TBI, reset):
            _, z, end = self.layers(x_TBI, state_BS, None, ops.UNCUT, reset)
            return z.to(state_BS.dtype), end[0]
        states = self.states(x_TBI, state_BS, reset)
        return states[..., 1 - self.num_layers :], states[-1]

    def states(self, x_TBI: Tensor, state_BS: Tensor, reset: Tensor | None) -> Tensor:
        """The state after each step, [T, B, S]."""
        reads = F.linear(x_TBI, self.weight_ih_l0, self.bias_l0)
        weights = self.joined_weights()
        states, state = [], state_BS
        initial = None if reset is None else self.initial_state(x_TBI.shape[1])
        for i, read in enumerate(reads):
            if reset is not None:
                state = torch.where(reset[i, :, None], initial, state)
            state = self.tick(read, state, weights)
            states.append(state)
        return torch.stack(states)

    def joined_weights(self) -> list[Tensor]:
        """For each layer, what multiplies [h, z h above, z below h below], in one piece.

        Above the top layer there is nothing; the bottom layer's input is multiplied separately.
        """
        names = [["weight_hh", "weight_top", "weight_ih"] for _ in range(self.num_layers)]
        names[0].remove("weight_ih")
        names[-1].remove("weight_top")
        return [
            torch.cat([getattr(self, f"{name}_l{layer}") for name in own], 1).t()
            for layer, own in enumerate(names)
        ]

    def tick(self, read: Tensor, state_BS: Tensor, weights: list[Tensor]) -> Tensor:
        """The next state, from what the bottom layer reads of the input, and joined_weights."""
        layers, size = self.num_layers, self.hidden_size
        parts = state_BS.split([size] * (2 * layers) + [1] * (layers - 1), 1)
        hs, cs, zs = parts[: 2 * layers : 2], parts[1 : 2 * layers : 2], parts[2 * layers :]
        state: list[Tensor] = []
        detected: list[Tensor] = []
        for layer, (h, c) in enumerate(zip(hs, cs)):
            bottom, top = layer == 0, layer == layers - 1
            z = torch.zeros_like(zs[0]) if top else zs[layer]
            z_below = torch.ones_like(z) if bottom else detected[-1]
            inputs = [h]
            inputs += [] if top else [z * hs[layer + 1]]
            inputs += [] if bottom else [z_below * state[-2]]
            start = read if bottom else getattr(self, f"bias_l{layer}")
            s = torch.addmm(start, torch.cat(inputs, 1).to(read.dtype), weights[layer]).to(c.dtype)
            if not top:
                detected.append(Detector.apply(s[:, 4 * size :], self.slope))
                s = s[:, : 4 * size]
            if self.layer_norm:
                normalised = F.layer_norm(s.unflatten(1, (4, size)), (size,)).flatten(1)
                gain, shift = getattr(self, f"gain_l{layer}"), getattr(self, f"shift_l{layer}")
                s = torch.addcmul(shift, gain, normalised)
            i, f, _, o = torch.sigmoid(s).chunk(4, 1)
            g = torch.tanh(s[:, 2 * size : 3 * size])
            copy, keep = (1 - z) * (1 - z_below), (1 - z) * z_below
            c = torch.addcmul((1 - copy) * i * g, torch.addcmul(copy, keep, f), c)
            h = torch.lerp(o * torch.tanh(c), h, copy)
            state += [h, c]
        return torch.cat(state + detected, 1)

    def output(self, states: Tensor) -> Tensor:
        """The gated mixture [..., O] of the layers' h in states [..., S]."""
        pairs = states[..., : 1 - self.num_layers].unflatten(-1, (self.num_layers, 2, -1))
        return self.mixture(pairs[..., 0, :].flatten(-2))

    def mixture(self, h: Tensor) -> Tensor:
        """The same of the layers' h [..., L H]."""
        h = h.to(self.mix.weight.dtype)
        gates = torch.sigmoid(self.gates(h))
        parts = h.unflatten(-1, (self.num_layers, -1))
        return torch.relu(self.mix((gates[..., None] * parts).flatten(-2)))

    def extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        return f"{sizes}, layer_norm={self.layer_norm}"


class Detector(torch.autograd.Function):
    """1 where s > 0, else 0; with the gradient of the hard sigmoid of slope * s."""

    @staticmethod
    def forward(ctx, s: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(s, slope)
        return (s > 0).to(s.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        s, slope = ctx.saved_tensors
        inside = (slope * s).abs() < 1
        return gradient * (slope / 2) * inside, None


@dataclass(frozen=True)
class HMLSTMConfig(NormConfig, name="hm-lstm"):
    """LSTMs that tick where the one below detects an end"""

    layers: int = option(3, "recurrent layers, one on the other", "LAYERS", at_least=1)
    slope_growth: float = option(
        0.04, "what an epoch adds to the slope of the detectors' gradient, from 1 up to 5", "SLOPE",
        at_least=0,
    )  # fmt: skip

    def build(self, input_size: int) -> Core:
        return HMLSTM(input_size, self.hidden, self.layers, layer_norm=not self.no_layer_norm)

    def anneal(self, core: Core, epochs: float) -> None:
        for part in core.modules():
            if isinstance(part, HMLSTM):
                part.slope.fill_(min(STEEPEST, 1 + self.slope_growth * epochs))
