"""Core: everything that recurs, from one cell to a whole stack.

Letters: T steps, B batch, I input, O output, S state, N chunks, K steps a chunk.
"""

import abc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dnirnn.checks import check_sizes, shown
from dnirnn.deprecated import OldWays, by_old_way
from dnirnn.embedding import Embedded
from dnirnn.options import Config, Registry, flag, key_value, option
from dnirnn.scanned import scanned
from dnirnn.unroll import Chunks, Unrolled, advance, are_times, check_t0, in_chunks

# Of the call of a Truncated at hand, in this thread.
AUXILIARY: ContextVar[list[Tensor] | None] = ContextVar("AUXILIARY", default=None)


class Core(OldWays, nn.Module, abc.ABC):
    """A recurrent network: a function of (input, state) applied once per step.

    ``step`` is the specification. ``forward`` is the loop over ``step``, or a faster path that is
    equal to it; a subclass writes ``step`` and sets ``input_size``, ``output_size`` and
    ``state_size``, and may override the rest for speed.

    The state is one tensor [B, S], whatever the core is made of: a stack concatenates the states of
    its parts along the last dimension.

    What a core adds to the loss itself (a price for what it does): :meth:`add_auxiliary_loss`.

    Called as ``core(x, state)``, its parameters are its attributes at that moment, whatever put them
    there (pruning, a parametrisation, ``torch.func.functional_call``), and its hooks run; so they do
    inside :class:`dnirnn.Truncated`, once a chunk.

    A call without t0 goes on at the time that its state knows: 0 for an ``initial_state``, for what a
    call returned the steps behind it, for as long as nobody changes it.

    reads_t: whether ``step`` itself reads t; its parts say so themselves. Where one does, a state
        that does not know the time, without t0, is taken to be at 0 with a warning. None, not known:
        without one.
    takes_times: whether it has a clock of its own, which the times of events can be given to: t0 may
        then be a float tensor [T, B], the time of every step (which a reset does not set back), and t
        of ``step`` a float tensor [B].
    """

    input_size: int
    output_size: int
    state_size: int
    reads_t: bool | None = None
    takes_times: bool = False

    def __call__(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        t0: int | Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            check_state_is_one(self, state_BS)
        else:
            steps, batch = check_inputs(self, x_TBI, state_BS, reset)
            if t0 is not None:
                check_t0(self, t0, steps, batch)
        t0 = known_t(self, state_BS) if t0 is None else t0
        if torch.compiler.is_exporting() and not self.exports_whole(x_TBI, reset):
            return scanned(self, x_TBI, state_BS, t0, reset)
        output, ended = super().__call__(x_TBI, state_BS, t0, reset)
        return output, keep_t(self, ended, t0, reset, x_TBI.shape[0])

    def takes_embedded(self, x: Embedded, reset: Tensor | None) -> bool:
        """Whether ``unroll`` takes the rows of an embedding before they are looked up."""
        return False

    def exports_whole(self, x_TBI: Tensor, reset: Tensor | None) -> bool:
        """Whether ``forward`` is one graph for every length; else torch.export takes a scan of ``step``."""
        return False

    def add_auxiliary_loss(self, loss: Tensor) -> None:
        """Adds to the loss that :func:`dnirnn.backward` goes back from.

        loss: 0-d, what the sequences' own losses grow by, summed over rows; attached to the
            graph. Outside of a call of :class:`dnirnn.Truncated` nobody takes it.
        """
        losses = None if torch.compiler.is_exporting() else AUXILIARY.get()
        if losses is not None:
            losses.append(loss)

    def initial_state(self, batch_size: int) -> Tensor:
        """The state [B, S] a sequence starts from: zeros, in at least float32.

        It may be learned: a subclass returns, say, ``self.start.expand(batch_size, -1)`` of a
        parameter ``start`` [S]. What is given to a call as its state, and what a ``reset`` puts in a
        row, sends its gradient back there.
        """
        if not torch.compiler.is_compiling():
            check_sizes(batch_size=batch_size)
        parameter = next(self.parameters(), None)
        if parameter is None:
            raise NotImplementedError(f"{type(self).__name__} has no parameters: write initial_state")
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        zeros = torch.zeros(batch_size, self.state_size, dtype=dtype, device=parameter.device)
        return with_t(zeros, 0)

    @abc.abstractmethod
    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """One step: (output [B, O], next state [B, S]).

        ``t`` counts the steps since the sequence's start: an int, or a LongTensor [B] where the
        rows of a batch started at different times; or, with ``takes_times``, is a float tensor [B].
        """

    def forward(
        self, x_TBI: Tensor, state_BS: Tensor, t0: int | Tensor = 0, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Unrolls over T steps: (outputs [T, B, O], last state [B, S]).

        ``t0`` is the t of the first step. ``reset`` [T, B] (bool) starts a new sequence in a row at
        a step: there the state becomes the initial state and t becomes 0.
        """
        outputs, state, t = [], state_BS, t0
        initial = self.initial_state(x_TBI.shape[1]) if reset is not None else None
        for i, x_BI in enumerate(x_TBI):
            if reset is not None:
                state = torch.where(reset[i, :, None], initial, state)
                t = torch.where(reset[i], 0, t)
            output, state = self.step(x_BI, state, t0[i] if are_times(t0) else t)
            outputs.append(output)
            t = t + 1
        return torch.stack(outputs), state

    def unroll(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe: Tensor | None,
        chunks: Chunks,
        estimator: nn.Module | None = None,
    ) -> Unrolled:
        """Unrolls N = ceil(T / K) chunks, each cut from the one before.

        Chunk 0 starts from ``state``, chunk n from where chunk n - 1 ended, detached, each with
        ``probe[n]`` added (None: nothing is added). Dense chunks have probe[t] added to the state
        that step t starts from, a reset at that step not yet made.

        A core that overrides this method may compute what ``estimator`` predicts, times its scale, on
        the way, as :attr:`Unrolled.synthetic`; ``super().unroll`` serves what it has no faster path for.
        """
        return in_chunks(self, x_TBI, state_BS, probe, chunks)


@contextmanager
def auxiliary_losses() -> Iterator[list[Tensor]]:
    """Gathers what cores add to the loss inside, in this thread."""
    losses: list[Tensor] = []
    token = AUXILIARY.set(losses)
    try:
        yield losses
    finally:
        AUXILIARY.reset(token)


def resets_to(core: Core, kind: Any, reset: Tensor | None) -> bool:
    """Whether ``reset`` puts ``kind``'s own initial state in a row, if any: nobody overrode it."""
    return reset is None or type(core).initial_state is kind.initial_state


def check_core(**cores: Core) -> None:
    """Raises TypeError naming what is no Core."""
    for name, core in cores.items():
        if not isinstance(core, Core):
            torchs = " (wrap an nn.LSTM, nn.GRU or nn.RNN in dnirnn.FromTorch)"
            how = torchs if isinstance(core, nn.RNNBase) else ""
            got = type(core).__name__ if isinstance(core, nn.Module) else shown(core)
            raise TypeError(f"{name} must be a dnirnn.Core; got {got}{how}")


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )

def unroll(
    core: Core,
    x_TBI: Tensor,
    state_BS: Tensor,
    probe: Tensor | None,
    chunks: Chunks,
    estimator: nn.Module | None = None,
) -> Unrolled:
    """``core.unroll(...)``; by calls of the core where it has hooks, so that they run, or cuts are open."""
    if has_hooks(core) or chunks.open_cuts is not None:
        return in_chunks(core, x_TBI, state_BS, probe, chunks)
    old = by_old_way(core, x_TBI, state_BS, probe, chunks)
    return core.unroll(x_TBI, state_BS, probe, chunks, estimator) if old is None else old


def step(core: Core, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
    """``core.step(x, state, t)``; by a call of the core where it has hooks, so that they run."""
    if not has_hooks(core):
        return core.step(x_BI, state_BS, t)
    output, state = core(x_BI[None], state_BS, t)
    return output[0], state


def check_state_is_one(core: Core, state: Tensor) -> None:
    if isinstance(state, Tensor):
        return
    how = " (core.pack_state(h, c) makes one of torch's)" if hasattr(core, "pack_state") else ""
    how = " (core.initial_state(B) is where a sequence starts)" if state is None else how
    raise TypeError(f"state must be one tensor [B, {core.state_size}]{how}; got {type(state).__name__}")


def check_inputs(
    core: Core, x: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[int, int]:
    """(T, B), or a ValueError or TypeError that names what does not fit."""
    check_state_is_one(core, state)
    for name, value in (("x", x), ("reset", reset)):
        if not isinstance(value, (Tensor, Embedded)) and not (name == "reset" and value is None):
            kind = "a bool tensor [T, B] or None" if name == "reset" else "a tensor"
            raise TypeError(f"{name} must be {kind}; got {type(value).__name__}")
    if x.dim() != 3 or x.shape[2] != core.input_size or 0 in x.shape[:2]:
        raise ValueError(
            f"x must be [T, B, {core.input_size}] with T and B at least 1; got {tuple(x.shape)}"
        )
    steps, batch = x.shape[:2]
    if tuple(state.shape) != (batch, core.state_size):
        raise ValueError(
            f"state must be [{batch}, {core.state_size}] for this x; got {tuple(state.shape)}"
        )
    if state.device != x.device:
        raise ValueError(f"state is on {state.device}, x on {x.device}: they must be on one device")
    if not (x.is_floating_point() and state.is_floating_point()):
        raise TypeError(f"x and state must be floating point; got {x.dtype} and {state.dtype}")
    parameter = first_parameter(core, x)
    if parameter.device != x.device:
        raise ValueError(
            f"x is on {x.device}, the core on {parameter.device}: they must be on one device"
        )
    if parameter.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x is {x.dtype}, the core's parameters {parameter.dtype}: they must have one dtype"
        )
    held = torch.promote_types(parameter.dtype, torch.float32)
    if state.dtype != held:
        raise TypeError(
            f"state must be {held} for a core of {parameter.dtype} parameters; got {state.dtype}"
        )
    if reset is not None:
        if reset.dtype != torch.bool:
            raise TypeError(f"reset must be a bool tensor; got {reset.dtype}")
        if tuple(reset.shape) != (steps, batch):
            raise ValueError(f"reset must be [{steps}, {batch}]; got {tuple(reset.shape)}")
    return steps, batch


def first_parameter(module: nn.Module, otherwise: Tensor) -> Tensor:
    """``next(module.parameters(), otherwise)``, in a fraction of its time: it is asked at every call."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    return next(module.parameters(), otherwise)


def reads_t(core: Core) -> bool | None:
    """Whether the core, or a part of it, reads t; None where one's is None."""
    if core.reads_t or not core._modules:
        return core.reads_t
    answers = {getattr(part, "reads_t", False) for part in core.modules()}
    return True if True in answers else None if None in answers else False


def version(state: Tensor) -> int | None:
    return None if state.is_inference() else state._version


def with_t(state: Tensor, t: int | Tensor) -> Tensor:
    """The state, knowing the t of the next step for as long as nobody changes it."""
    if not torch.compiler.is_compiling():
        state.next_t = t, version(state)
    return state


def known_t(core: Core, state: Tensor) -> int | Tensor:
    """The t of the next step, which the state knows; 0 where the core does not read it.

    Where it reads it and the state does not know: 0, with a warning; ValueError under torch.compile.
    """
    asked = reads_t(core)
    if asked is False:
        return 0
    if not torch.compiler.is_compiling():
        t, changed = getattr(state, "next_t", (None, None))
        if t is not None and changed == version(state):
            return t
    if asked is None:
        return 0
    problem = (
        f"{type(core).__name__} reads the time, and this state does not know it, being neither an"
        " initial_state nor what a call returned, as it was: give t0=0 where sequences start, else"
        " the steps since then, an int or a LongTensor [B]"
    )
    if torch.compiler.is_compiling():
        raise ValueError(problem)
    warnings.warn(f"{problem}; it is taken as 0", stacklevel=4)
    return 0


def keep_t(
    core: Core, ended: Tensor, t0: int | Tensor, reset: Tensor | None, steps: int
) -> Tensor:
    # After times of events it is not known when the next one comes.
    unknown = reads_t(core) is False or are_times(t0)
    return ended if unknown else with_t(ended, advance(t0, reset, steps))


def between_resets(
    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x_TBI: Tensor,
    state_BS: Tensor,
    initial_BS: Tensor,
    reset_TB: Tensor,
) -> tuple[Tensor, Tensor]:
    """run(x, state) -> (outputs, state) over the stretches between the steps with a reset."""
    starts = [0, *(i for i in reset_TB.any(1).nonzero().flatten().tolist() if i), len(x_TBI)]
    outputs, state = [], state_BS
    for start, end in zip(starts, starts[1:]):
        state = torch.where(reset_TB[start, :, None], initial_BS, state)
        output, state = run(x_TBI[start:end], state)
        outputs.append(output)
    return torch.cat(outputs), state


@dataclass(frozen=True)
class CoreConfig(Config):
    """What makes a core; one beside each that --core names, in the registry CORES."""

    registry: ClassVar[Registry] = Registry("core")

    hidden: int = option(256, "units of a recurrent layer, or of all of them together", "UNITS", at_least=1)

    @property
    def multiple(self) -> int:
        """What ``hidden`` must be a multiple of."""
        return 1

    def build(self, input_size: int) -> Core:
        raise NotImplementedError(f"{type(self).__name__} must define what it builds")

    def anneal(self, core: Core, epochs: float) -> None:
        """Sets in a core that it built what changes with the epochs of training."""

    @classmethod
    def of_class(cls, found: Any, name: str) -> "type[CoreConfig]":
        """Of a Core without a Config: its arguments are ``core_options``.

        Raises ValueError for anything else.
        """
        if not (isinstance(found, type) and issubclass(found, Core)):
            raise ValueError(f"--core must name a dnirnn.Core; {name} is {found!r}")
        return type("Config", (OwnCore,), {"kind": found, "__doc__": found.__doc__})


@dataclass(frozen=True)
class OwnCore(CoreConfig):
    """Any Core: kind(input_size, hidden_size=hidden, **core_options), the second where it takes it."""

    kind: ClassVar[type[Core]]

    core_options: tuple = option((), "arguments of its class", "KEY=VALUE", many=key_value)

    def build(self, input_size: int) -> Core:
        sized = {"hidden_size": self.hidden} if "hidden_size" in signature(self.kind).parameters else {}
        return own(self.kind, "core_options", input_size, **{**sized, **dict(self.core_options)})


def own(kind: Callable[..., Any], option: str, *sizes: int, **arguments: Any) -> Any:
    """Calls a person's class. Raises ValueError where the option's arguments do not fit it."""
    try:
        signature(kind).bind(*sizes, **arguments)
    except TypeError as error:
        raise ValueError(f"{flag(option)} do not fit {kind.__name__}: {error}") from None
    return kind(*sizes, **arguments)


CORES = CoreConfig.registry
