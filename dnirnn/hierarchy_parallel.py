"""HierarchyParallel: the fast and the slow network of a Hierarchy in processes of their own."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dnirnn.boundary import Interface
from dnirnn.checks import check_instances, check_knobs, check_list, check_sizes, shown
from dnirnn.cuts import cut, receive
from dnirnn.decoupled import step
from dnirnn.distributed import reaching
from dnirnn.estimators import GradientEstimator
from dnirnn.hierarchy import Hierarchy
from dnirnn.interface import backward
from dnirnn.messages import Loop, Neighbour
from dnirnn.parallel import catch, sent_back
from dnirnn.truncated import Truncated

Loss = Callable[[Tensor, Any], Tensor]


class HierarchyParallel(nn.Module):
    """This rank's network of a :class:`dnirnn.Hierarchy`: the fast one on rank 0, the slow one on rank 1.

    At each tick n, ``period`` steps of the fast network and one of the slow, with d the Hierarchy's
    delay:

        fast    reads x and b_(n-1-d); its last output, a_n, goes up; it steps at once
        slow    reads a_n; its output, b_n, goes down; it steps at once

    each along its own loss, what an estimator in time predicts for its state at the end of the tick,
    and what another predicts for its message: at a_n, of the slow network's loss; at b_n, of the fast one's.
    The gradient that comes back to a_n goes down and that to b_n up, each to its own a or b, by the
    number. Where d is 1 or more the fast network never waits for the slow one's tick. Which b a
    tick reads depends on the model, not on the messages: no run depends on how fast they are but in when
    estimators are fitted, and with ``staleness`` = 0 not in that either: it is one process to the bit.

    core: its period and delay count.
    encoder: from x to the fast network's inputs [period, B, I].
    losses: of the fast network's outputs [period, B, O] and y, and of the slow one's [1, B, O] and y;
        the loss is their sum.
    in_time: estimators of the fast and of the slow state. cuts: estimators at a and at b, with a
        discount that is their scale. The last d + 1 b of a sequence are read by nobody: 0 is their target.
    optimizers: (the fast network's, the slow one's): each a tuple, of all that is stepped on that side.
    staleness: how many ticks the targets of a, and those of b beyond its 1 + d, may be behind; with
        more of them missing the rank waits for the oldest.
    delay: seconds that every message to this rank takes longer.
    group: of two ranks; None: all there are. Where torch.distributed was not begun, this process alone,
        which has both networks.

    settle, close, waits, waited, sent_bytes and errors are as in :class:`dnirnn.DecoupledParallel`, and
    so are the messages. losses: of the networks here, in the last update.

    Raises TypeError or ValueError naming the argument that does not fit, RankLost where the other rank
    has ended, and RuntimeError where a message is of another tick than the one that is due.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017, section
    3.2. The delay there is none; it is our own.
    """

    def __init__(
        self,
        core: Hierarchy,
        encoder: nn.Module,
        losses: Sequence[Loss],
        in_time: Sequence[GradientEstimator],
        cuts: Sequence[GradientEstimator],
        optimizers: Sequence[tuple[Optimizer, ...]],
        *,
        staleness: int = 1,
        delay: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__()
        check_instances(Hierarchy, core=core)
        check_instances(nn.Module, encoder=encoder)
        check_sizes(0, staleness=staleness)
        check_knobs(delay=delay)
        if delay >= 3600:
            raise ValueError(f"delay must be seconds, below an hour; got {delay!r}")
        if not isinstance(losses, (list, tuple)) or not all(map(callable, losses)):
            raise TypeError(f"losses must be a list of functions of (outputs, y); got {shown(losses)}")
        check_list("optimizers", optimizers, tuple)
        for several in optimizers:
            check_list("optimizers", several, Optimizer)
        check_list("in_time", in_time, GradientEstimator)
        check_list("cuts", cuts, GradientEstimator)
        for name, given in dict(losses=losses, in_time=in_time, cuts=cuts, optimizers=optimizers).items():
            if len(given) != 2:
                raise ValueError(f"{name} must be two, of the fast network and the slow; got {len(given)}")
        alone = group is None and not dist.is_initialized()
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)
        if core.back > 1:
            raise ValueError(f"core must be cut at every tick, with back=1; got {core.back}")
        if self.size > 2:
            raise ValueError(f"group must be of two ranks, a network each; got {self.size}")
        # The messages that are read first were sent before: they have the numbers 1 to 1 + delay.
        self.period, self.update = core.period, 1 + core.delay
        self.losses: list[Tensor] = []
        self.lines: list[Neighbour] = []
        if self.size == 1:
            up, down, to_a, to_b = (Loop() for _ in range(4))
            ways: list[tuple] = [(up, down, to_b, to_a), (down, up, to_a, to_b)]
        else:
            members = dist.get_process_group_ranks(group or dist.group.WORLD)
            with reaching():
                # One for messages and one for targets: neither stands in the other's way.
                groups = [dist.new_group(members, backend="gloo") for _ in range(2)]
            self.lines = [Neighbour(members[1 - self.rank], one, delay) for one in groups]
            messages, targets = self.lines
            ways = [(messages, messages, targets, targets)] * 2
        here = (0, 1) if self.size == 1 else (self.rank,)
        self.fast = self.slow = None
        if 0 in here:
            unrolled = Truncated(core.fast, core.period, in_time[0])
            self.fast = Fast(core, unrolled, losses[0], cuts[0], optimizers[0], staleness, ways[0])
            self.fast.encoder = encoder
        if 1 in here:
            unrolled = Truncated(core.slow, 1, in_time[1])
            self.slow = Slow(core, unrolled, losses[1], cuts[1], optimizers[1], staleness, ways[1])

    def learn(
        self, x: Any, y: Any, state: Tensor, t: int, final: bool = False, unit: float = 1.0
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Takes the next tick in, on all ranks with the same arguments: an update of what is here.

        x: read by the encoder. y: the losses' targets. state: the Hierarchy's [B, S], at t steps
        since the sequence's start; of it this rank's networks read their own columns. final: the
        sequence ends with this tick. unit: by what the losses multiply a row's own loss.

        Returns (detached 0-d tensors: ``loss``, the sum of those here, and ``estimator_error``; the
        state [B, S] after, of which the columns of the networks here are new).
        """
        if t % self.period:
            raise ValueError(f"t must be a multiple of the period, {self.period}; got {t}")
        self.update += 1
        now = Tick(self.update, self.update - t // self.period, t, final, unit)
        state = state.clone()
        self.losses = []
        for side in self.sides:
            side.errors = []
        if self.fast is not None:
            self.losses.append(self.fast.learn(now, x, y, state))
        if self.slow is not None:
            self.losses.append(self.slow.learn(now, y, state))
        if self.fast is not None:
            self.fast.meet(now.number)
        found = {"loss": torch.stack(self.losses).sum()}
        return found | ({"estimator_error": torch.stack(self.errors).mean()} if self.errors else {}), state

    @property
    def sides(self) -> "list[Side]":
        return [side for side in (self.fast, self.slow) if side is not None]

    @property
    def errors(self) -> list[Tensor]:
        return [error for side in self.sides for error in side.errors]

    @property
    def waits(self) -> int:
        return sum(side.waits for side in self.sides)

    @property
    def waited(self) -> float:
        return sum(side.waited for side in self.sides)

    @property
    def sent_bytes(self) -> int:
        return sum(line.sent_bytes for line in self.lines)

    def settle(self) -> None:
        """Waits for all targets on their way, and fits to them."""
        for side in self.sides:
            side.meet(self.update, 0)

    def close(self) -> None:
        """Waits until all messages have arrived, and tells the other rank that this one ends."""
        self.settle()
        for line in self.lines:
            line.say_bye()
        for line in self.lines:
            line.thread.join()

    def extra_repr(self) -> str:
        return f"rank={self.rank} of {self.size}, period={self.period}"


class Tick(NamedTuple):
    """number: of the tick; since: that of its sequence's first; t: steps before it in the sequence."""

    number: int
    since: int
    t: int
    final: bool
    unit: float


class Side(nn.Module):
    """One network: cut in time, with the estimator at what it sends, whose targets come from the other.

    ways: of messages to the other side and from it, then of targets.
    """

    late = 0  # ticks that a target needs in any case

    def __init__(
        self,
        core: Hierarchy,
        unrolled: Truncated,
        loss: Loss,
        estimator: GradientEstimator,
        optimizers: tuple[Optimizer, ...],
        staleness: int,
        ways: tuple,
    ):
        super().__init__()
        self.truncated, self.loss, self.estimator = unrolled, loss, estimator
        self.optimizers, self.staleness = optimizers, staleness
        self.messages_out, self.messages_in, self.targets_out, self.targets_in = ways
        self.sizes, self.period, self.lag = core.sizes, core.period, 1 + core.delay
        self.kept: dict[int, tuple[Interface, float]] = {}
        self.errors: list[Tensor] = []
        self.waits, self.waited = 0, 0.0

    def step(
        self, now: Tick, message: Tensor, loss: Tensor, in_time: list[Interface], caught: Interface
    ) -> Tensor:
        """The backward pass, and an update: what came back to what was read [B, O]."""
        _, interface = cut(message, self.estimator)
        self.kept[now.number] = interface, now.unit
        total = loss + sent_back(interface, now.unit) if self.is_read(now) else loss
        found = backward(total, in_time, now.unit)
        self.errors += [found["estimator_error"]] if found else []
        for optimizer in self.optimizers:
            step(optimizer)
        assert caught.probe is not None
        back = caught.probe.grad
        return torch.zeros_like(caught.probe)[0] if back is None else back[0]

    def is_read(self, now: Tick) -> bool:
        """Whether the other side reads what is sent at this tick."""
        return True

    def messages_of(self, state: Tensor) -> Sequence[Tensor]:
        """The slow network's last messages, oldest first."""
        return state[:, sum(self.sizes[:2]) :].clone().chunk(self.lag, 1)

    def fit(self, number: int, target: Tensor) -> None:
        """Fits the estimator to a target, at the message it belongs to."""
        if number not in self.kept:
            raise RuntimeError(f"a target came of tick {number}, whose message is not kept")
        interface, unit = self.kept.pop(number)
        if interface.probe is None:
            return
        interface.probe.grad = target.view(interface.probe.shape).to(interface.probe.dtype)
        self.errors.append(receive(interface, unit))
        for optimizer in self.optimizers:
            step(optimizer)

    def meet(self, number: int, staleness: int | None = None) -> None:
        """Takes the targets that have come by tick ``number``, and waits where too many are missing."""
        bound = self.staleness if staleness is None else staleness
        # Without lateness what is fitted when does not depend on how fast the messages are.
        for found in self.targets_in.arrived() if self.staleness else ():
            self.fit(*found)
        while sum(one <= number - self.late for one in self.kept) > bound:
            self.fit(*self.wait(self.targets_in))

    def wait(self, way: Any, *due: int) -> Any:
        began = time.perf_counter()
        found, waited = way.get(*due)
        if waited:
            self.waits += 1
            self.waited += time.perf_counter() - began
        return found


class Fast(Side):
    def __init__(self, *given):
        super().__init__(*given)
        self.encoder: nn.Module = nn.Identity()
        self.earlier: Sequence[Tensor] = ()  # messages of before the first tick here

    def learn(self, now: Tick, x: Any, y: Any, state: Tensor) -> Tensor:
        given, caught = catch(self.message(now, state))
        inputs = self.encoder(x)
        held = given.to(inputs.dtype).expand(len(inputs), -1, -1)
        own = state[:, : self.sizes[0]]
        outputs, ended, in_time = self.truncated(
            torch.cat([inputs, held], 2), own.clone(), now.t, now.final
        )
        self.messages_out.put(now.number, outputs[-1])
        loss = self.loss(outputs, y)
        back = self.step(now, outputs[-1], loss, in_time, caught)
        if now.number - self.lag >= now.since:
            self.targets_out.put(now.number - self.lag, back)
        state[:, : self.sizes[0]] = ended
        return loss.detach()

    def message(self, now: Tick, state: Tensor) -> Tensor:
        """b_(n-1-d), where its sequence has one: what the state has of before the first tick here."""
        if not self.earlier:
            self.earlier = self.messages_of(state)
        number = now.number - self.lag
        before = number <= self.lag
        found = self.earlier[number - 1] if before else self.wait(self.messages_in, number)
        return torch.zeros_like(found) if number < now.since else found


class Slow(Side):
    def __init__(self, *given):
        super().__init__(*given)
        self.late = self.lag

    def learn(self, now: Tick, y: Any, state: Tensor) -> Tensor:
        if now.number == 1 + self.lag:
            # Of messages from before the first tick here whose targets are still to come.
            for number, message in enumerate(self.messages_of(state), 1):
                if number >= now.since:
                    self.kept[number] = cut(message, self.estimator)[1], now.unit
        given, caught = catch(self.wait(self.messages_in, now.number))
        begin, end = self.sizes[0], sum(self.sizes[:2])
        own = state[:, begin:end]
        outputs, ended, in_time = self.truncated(
            given[None], own.clone(), now.t // self.period, now.final
        )
        message = outputs[-1]
        self.messages_out.put(now.number, message)
        loss = self.loss(outputs, y)
        back = self.step(now, message, loss, in_time, caught)
        self.targets_out.put(now.number, back)
        state[:, begin:end] = ended
        state[:, end:] = torch.cat([state[:, end + message.shape[1] :], message.detach()], 1)
        self.meet(now.number)
        if now.final:
            for number in [one for one in self.kept if one > now.number - self.late]:
                self.fit(number, torch.zeros_like(message))
        return loss.detach()

    def is_read(self, now: Tick) -> bool:
        return not now.final
