"""Hierarchy: a fast network and a slow one that ticks once every so many of its steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dnirnn.checks import check_sizes, check_words
from dnirnn.core import Core, CoreConfig, check_core, step, with_t
from dnirnn.estimators import GradientEstimator, SyntheticGradient, ZeroGradient
from dnirnn.lstm import LSTM
from dnirnn.options import option
from dnirnn.truncated import Truncated


class Hierarchy(Core):
    """``fast`` ticks every step, ``slow`` every ``period`` steps, and each reads the other's output.

    At step t, with m the slow network's last output, zero before its first tick:

        a, fast state' = fast([x, m], fast state)
        b, slow state' = slow(a, slow state)      where (t + 1) mod period = 0; else b = m
        output = [a, b];  m' = b

    The slow network's own t is t // period. The state [B, S] is the fast network's, the slow one's,
    then m. For more levels ``slow`` is a Hierarchy itself, whose period counts its own ticks; then
    m holds the output of all the levels above.

    fast: its input is x and m together: input_size = fast.input_size - slow.output_size.
    slow: its input is the fast network's output. Between ticks it costs nothing.
    period: steps to a tick, at least 1.

    m is a part of the state, so a cut through the state is the interface between the levels as
    well: cut after every tick (see :meth:`truncate`), the fast network is updated without waiting
    for the slow one's next ticks, the slow one without waiting for what the fast one makes of m.

    back: how many of its ticks the slow network is carried back through, whatever is cut. At 1 a cut
        is one for all levels: the slow state is cut where the fast one is. With more, the state holds
        the slow network's state before every ``back`` ticks and what it has read since,

            [fast state, slow state then, m, a_1, ..., a_back]

        zeros where it has not read so much, and it runs from there at every tick, (back + 1) / 2
        times the work. Nothing else changes: cut after every tick, what is cut is the fast network in
        time and the messages between the two, while the slow network's weights get the whole gradient
        of what it sends at the last of those ticks; what comes back to the messages, bar the last, is
        predicted. A message is carried over up to back - 1 cuts, and what is predicted for it is
        discounted at each: an estimator with a discount of 0.1 hardly learns of the first ones.

    delay: in ticks, that the fast network reads late what the slow one sent: in the place of m what it
        sent so many ticks before m, so that it need not wait for a tick to go on, in a process of its
        own as in :class:`dnirnn.HierarchyParallel`. In the place of m the state then has the slow
        network's last delay + 1 messages, m the last.

    Raises TypeError for what is no Core or a period that is no int, ValueError for a period below 1
    or sizes that do not fit.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    section 3.2 (networks A and B).
    """

    reads_t = True

    def __init__(self, fast: Core, slow: Core, period: int, back: int = 1, delay: int = 0):
        super().__init__()
        check_core(fast=fast, slow=slow)
        check_sizes(period=period, back=back)
        check_sizes(0, delay=delay)
        if slow.input_size != fast.output_size:
            raise ValueError(
                f"slow must take fast's output of {fast.output_size};"
                f" its input_size is {slow.input_size}"
            )
        if fast.input_size <= slow.output_size:
            raise ValueError(
                f"fast must take an input and slow's output of {slow.output_size} together;"
                f" its input_size is {fast.input_size}"
            )
        self.fast, self.slow, self.period = fast, slow, period
        self.back, self.delay = back, delay
        self.input_size = fast.input_size - slow.output_size
        self.output_size = fast.output_size + slow.output_size
        self.sizes = [fast.state_size, slow.state_size, (1 + delay) * slow.output_size]
        if back > 1:
            self.sizes.append(back * fast.output_size)
        self.state_size = sum(self.sizes)

    def initial_state(self, batch_size: int) -> Tensor:
        states = [core.initial_state(batch_size) for core in (self.fast, self.slow)]
        rest = states[1].new_zeros(batch_size, sum(self.sizes[2:]))
        return with_t(torch.cat([*states, rest], 1), 0)

    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        fast, slow, messages, *past = state_BS.split(self.sizes, 1)
        read, message = self.ends(messages)
        output, fast = step(self.fast, torch.cat([x_BI, read.to(x_BI.dtype)], 1), fast, t)
        ticks = (t + 1) % self.period == 0
        if isinstance(ticks, Tensor) or ticks:
            sent, ticked, now = self.tick(output, slow, past, t // self.period)
            after = self.then(messages, sent)
            if isinstance(ticks, Tensor):
                after = torch.where(ticks[:, None], after, messages)
                ticked = torch.where(ticks[:, None], ticked, slow)
                now = [torch.where(ticks[:, None], one, kept) for one, kept in zip(now, past)]
            slow, messages, past = ticked, after, now
            message = self.ends(messages)[1]
        state = torch.cat([fast, slow, messages, *past], 1)
        return torch.cat([output, message.to(output.dtype)], 1), state

    def tick(
        self, output: Tensor, slow: Tensor, past: list[Tensor], tick: int | Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """One tick on the fast network's output [B, F]: (what the slow one sends, its state, what it read).

        tick: how many there were before, an int or a LongTensor [B]. past: [[B, back F]]; at back 1
        an empty list, as what is returned.
        """
        if not past:
            if isinstance(tick, Tensor):
                return *step(self.slow, output, slow, tick), []
            sent, slow = self.slow(output[None], slow, tick)
            return sent[0], slow, []
        if isinstance(tick, Tensor):
            return self.tick_by_rows(output, slow, past[0], tick)
        (before,), place, size = past, tick % self.back, output.shape[1]
        inputs = torch.cat([before[:, : place * size], output.to(before.dtype)], 1)
        rows = inputs.to(output.dtype).unflatten(1, (place + 1, size)).transpose(0, 1)
        sent, state = self.slow(rows, slow, tick - place)
        if place == self.back - 1:
            return sent[-1], state, [torch.zeros_like(before)]
        return sent[-1], slow, [torch.cat([inputs, before[:, (place + 1) * size :]], 1)]

    def tick_by_rows(
        self, output: Tensor, slow: Tensor, past: Tensor, tick: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The same of rows that are at different ticks."""
        place = tick % self.back
        at = (torch.arange(self.back, device=output.device) == place[:, None])[..., None]
        inputs = past.unflatten(1, (self.back, -1))
        inputs = torch.where(at, output[:, None].to(past.dtype), inputs)
        state, sent = slow, None
        for i, one in enumerate(inputs.to(output.dtype).unbind(1)):
            now, state = step(self.slow, one, state, tick - place + i)
            sent = now if sent is None else torch.where(at[:, i], now, sent)
        over = at[:, -1]
        return sent, torch.where(over, state, slow), [inputs.flatten(1).masked_fill(over, 0)]

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if reset is not None or isinstance(t0, Tensor):
            return super().forward(x_TBI, state_BS, t0, reset)
        fast, slow, messages, *past = state_BS.split(self.sizes, 1)
        outputs, begin, steps = [], 0, len(x_TBI)
        while begin < steps:
            t = t0 + begin
            end = min(begin + self.period - t % self.period, steps)
            # m changes only with the last step before `end`, after the fast network read it.
            read, message = self.ends(messages)
            held = read.to(x_TBI.dtype).expand(end - begin, -1, -1)
            output, fast = self.fast(torch.cat([x_TBI[begin:end], held], 2), fast, t)
            held = message.to(output.dtype).expand(end - begin, -1, -1)
            if (t0 + end) % self.period == 0:
                sent, slow, past = self.tick(output[-1], slow, past, t // self.period)
                held = torch.cat([held[:-1], sent[None].to(output.dtype)])
                messages = self.then(messages, sent)
            outputs.append(torch.cat([output, held], 2))
            begin = end
        return torch.cat(outputs), torch.cat([fast, slow, messages, *past], 1)

    def ends(self, messages: Tensor) -> tuple[Tensor, Tensor]:
        """(what the fast network reads, what the slow one sent last) of the messages in the state."""
        size = self.slow.output_size
        return messages[:, :size], messages[:, -size:]

    def then(self, messages: Tensor, sent: Tensor) -> Tensor:
        """The messages after a tick."""
        return torch.cat([messages[:, self.slow.output_size :], sent], 1) if self.delay else sent

    def truncate(
        self, training: str, ticks: int, estimator: GradientEstimator | None = None
    ) -> Truncated:
        """This core, cut for one of three ways of training:

        "full": backpropagation over the slow horizon, ``ticks`` ticks of the slow network; an
            update has to wait for ticks * period steps.
        "truncated": cut after every tick; an update every ``period`` steps, and no gradient from
            beyond a tick.
        "dni": cut at the same places, with the gradients that ``estimator`` predicts for both
            networks' states and for m; None: a linear SyntheticGradient.

        Raises ValueError for another way, ticks below 1, or an estimator with a way of none.
        """
        check_words(("full", "truncated", "dni"), training=training)
        check_sizes(ticks=ticks)
        if training == "dni":
            estimator = self.linear_estimator() if estimator is None else estimator
            return Truncated(self, self.period, estimator)
        if estimator is not None:
            raise ValueError(f"estimator goes with training dni; got one with {training}")
        return Truncated(self, self.period * (ticks if training == "full" else 1), ZeroGradient())

    def linear_estimator(self) -> SyntheticGradient:
        parameter = next(self.parameters())
        return SyntheticGradient(self.state_size, device=parameter.device, dtype=parameter.dtype)

    def extra_repr(self) -> str:
        text = f"period={self.period}" + (f", back={self.back}" if self.back > 1 else "")
        return text + (f", delay={self.delay}" if self.delay else "")


@dataclass(frozen=True)
class HierarchyConfig(CoreConfig, name="hierarchy"):
    """an LSTM, and one that ticks every --every steps; each reads the other's output"""

    every: int = option(4, "steps from one tick of the slower LSTM to the next", "STEPS", at_least=1)

    def build(self, input_size: int) -> Core:
        fast = LSTM(input_size + self.hidden, self.hidden)
        return Hierarchy(fast, LSTM(self.hidden, self.hidden), self.every)
