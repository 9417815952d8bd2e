"""Skip: a core that learns at which steps to update its state, and keeps it at the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dnirnn import ops
from dnirnn.cells.chain import READS_X, Link, lstm_cells
from dnirnn.cells.fused import Fused, plain_lstm
from dnirnn.checks import check_knobs, check_numbers
from dnirnn.core import Core, CoreConfig, check_core, has_hooks, resets_to, step, with_t
from dnirnn.lstm import LSTM
from dnirnn.options import option

# Of every Skip that is recorded in this thread, by its id; replaced, never changed in place.
RECORDED: ContextVar[dict[int, list[Tensor]]] = ContextVar("RECORDED", default={})  # noqa: B039


class Round(torch.autograd.Function):
    """1 where x > 0.5, else 0; straight-through: the gradient is that of x itself."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (x > 0.5).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class Skip(Fused):
    """A Skip RNN: any core, whose state and output are kept where a binary gate u_t is 0.

        u_t    = round(u~_t)                                             in {0, 1}
        s_t    = u_t S(s_t-1, x_t) + (1 - u_t) s_t-1
        du_t   = sigmoid(w s_t + b)                                      one number a row
        u~_t+1 = u_t du_t + (1 - u_t) (u~_t + min(du_t, 1 - u~_t))

    where S is ``core.step`` and s its whole state. The output is held as the state is. So after an
    update u~ starts from du, and grows by it at every step until it is over 1/2: the next update.
    Rounding is straight-through: backward, u_t counts as u~_t.

    The state is [the core's state, the output held, u~] (:meth:`unpack_state`); u~ starts at 1, so
    the first step of a sequence is an update. The core takes t, the steps since the sequence's
    start, whether it was updated at them or not.

    What teaches it to skip is a price: with ``cost``, the loss that :func:`dnirnn.backward` goes
    back from grows by cost * u_t for every row and step (see :meth:`dnirnn.Core.add_auxiliary_loss`). Updates
    are counted with :meth:`recording`. A step at which no row is updated takes no time where no
    gradient is asked for; in training every step is computed, since the gradient of u_t needs it. Of
    a dnirnn.LSTM of one layer, on the CPU, the loop over steps is a fused operator's.

    core: S.
    bias: b at the start. At 1, as in the authors' program, a fresh Skip updates at nearly every
        step; below 0, at fewer.
    cost: lambda of an update, in units of a sequence's own loss, finite and not negative.

    Raises ValueError for another cost.

    Source: Campos et al., Skip RNN: Learning to Skip State Updates in Recurrent Neural Networks,
    ICLR 2018, section 3; the cost is its lambda in L_budget.
    """

    reads_t = False

    def __init__(self, core: Core, bias: float = 1.0, cost: float = 0.0):
        super().__init__()
        check_core(core=core)
        check_numbers(bias=bias)
        check_knobs(cost=cost)
        like = core.initial_state(1)
        dtype = next(core.parameters(), like).dtype
        self.core, self.bias, self.cost = core, bias, float(cost)
        self.gate = nn.Linear(core.state_size, 1, device=like.device, dtype=dtype)
        nn.init.constant_(self.gate.bias, bias)
        self.input_size, self.output_size = core.input_size, core.output_size
        self.sizes = [core.state_size, core.output_size, 1]
        self.state_size = sum(self.sizes)

    def initial_state(self, batch_size: int) -> Tensor:
        state = self.core.initial_state(batch_size)
        held = state.new_zeros(batch_size, self.output_size)
        return with_t(torch.cat([state, held, state.new_ones(batch_size, 1)], 1), 0)

    def unpack_state(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the core's state [..., S], the output held [..., O], u~ [..., 1]) of a state."""
        return state.split(self.sizes, -1)

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Gathers u_t [B], 0 or 1, of every step that is run inside, in a list, with its gradient.

        Of this thread's steps alone.

        The share of steps used:

            with skip.recording() as updates:
                output, state, cuts = truncated(x, state)
            share = torch.stack(updates).mean()
        """
        updates: list[Tensor] = []
        token = RECORDED.set({**RECORDED.get(), id(self): updates})
        try:
            yield updates
        finally:
            RECORDED.reset(token)

    def fused_for(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        gate = type(self.gate).forward is nn.Linear.forward and not has_hooks(self.gate)
        whole = gate and plain_lstm(self.core, reset) and resets_to(self, Skip, reset)
        return whole and ops.gated_for(x_TBI)

    def fused(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        truncation: int,
        t0: int | Tensor,
        reset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = self.core.weights
        links = [Link(0, [READS_X], [w_hh, w_ih, b_ih + b_hh])]
        skip = [part.to(state_BS.dtype) for part in (self.gate.weight, self.gate.bias)]
        found, end = lstm_cells(x_TBI, state_BS, probe, links, truncation, skip=skip, reset=reset)
        output, u = found.split([self.output_size, 1], 2)
        self.report(u[..., 0].to(state_BS.dtype))
        return output, end

    def report(self, u_TB: Tensor) -> None:
        """To who records, and to the loss, the u_t of some steps."""
        recorded = None if torch.compiler.is_exporting() else RECORDED.get().get(id(self))
        if recorded is not None:
            recorded.extend(u_TB.unbind())
        if self.cost:
            self.add_auxiliary_loss(self.cost * u_TB.sum())

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        state, held, soft = self.unpack_state(state_BS)
        u = Round.apply(soft)
        self.report(u.T)
        if torch.compiler.is_exporting() or torch.is_grad_enabled() or u.any():
            output, updated = step(self.core, x_BI, state, t)
            state = torch.lerp(state, updated, u)
            held = torch.lerp(held, output.to(held.dtype), u)
        increment = torch.sigmoid(self.gate(state.to(self.gate.weight.dtype))).to(soft.dtype)
        soft = torch.lerp(soft + torch.minimum(increment, 1 - soft), increment, u)
        return held.to(x_BI.dtype), torch.cat([state, held, soft], 1)

    def extra_repr(self) -> str:
        return f"bias={self.bias}, cost={self.cost}"


@dataclass(frozen=True)
class SkipConfig(CoreConfig, name="skip"):
    """LSTM that learns at which steps to update its state"""

    layers: int = option(1, "recurrent layers, one on the other", "LAYERS", at_least=1)
    skip_bias: float = option(
        1.0,
        "its gate's bias at the start: above 0 it begins by updating at every step, below it skips",
    )
    skip_cost: float = option(
        0.0, "what every update of its state adds to the loss, so that it learns to skip", "NATS",
        at_least=0,
    )  # fmt: skip

    def build(self, input_size: int) -> Core:
        core = LSTM(input_size, self.hidden, self.layers)
        return Skip(core, self.skip_bias, self.skip_cost)
