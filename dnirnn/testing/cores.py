"""The laws of a core.

Letters: T steps, B batch, I input, O output, S state, N chunks, K steps a chunk.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.core import Core
from dnirnn.testing.laws import close, judge
from dnirnn.unroll import Chunks


class Shape(NamedTuple):
    """A case: T steps in chunks of K, B rows, the t of each row's first step, resets or none."""

    T: int
    K: int
    B: int
    t0: int | tuple[int, ...] = 0
    resets: bool = False

    def __str__(self) -> str:
        with_resets = ", with resets" if self.resets else ""
        return f"T={self.T}, K={self.K}, B={self.B}, t0={self.t0}{with_resets}"


SHAPES = (
    Shape(1, 1, 1),
    Shape(5, 2, 1),
    Shape(6, 3, 2),
    Shape(7, 3, 3, 4),
    Shape(6, 4, 2, (3, 8)),
    Shape(7, 2, 3, (0, 5, 2), True),
    Shape(4, 9, 2, 0, True),
)


class Case(NamedTuple):
    core: Core
    shape: Shape
    x: Tensor
    state: Tensor
    t0: int | Tensor
    reset: Tensor | None
    weight: Tensor  # of the outputs in the loss


def check_core(core: Core, *, compile: bool = False, seed: int = 0) -> None:
    """Raises LawsBroken, naming every law that ``core`` breaks and where; else returns None.

    core: checked as a copy in float64 and in eval mode; the core itself is left as it is.
    compile: whether ``torch.compile(core, fullgraph=True)`` must give the same, too (it takes
        seconds, and a compiler).
    seed: of the inputs, the states and the resets.

    The laws, each at several shapes: outputs are [T, B, O] and states [B, S]; the same call gives
    the same; no row depends on another; ``forward`` is the loop over ``step``, in values and in the
    gradients of the inputs, the state and every parameter, for any t0 and any resets; a sequence
    cut in two calls, anywhere, gives what one call gives; chunks (``unroll``) are that loop,
    detached at every cut, with the probes added; the core's own faster paths for dense and for
    lambda targets give what Core's give; float32 stays float32, and a state in 16 bits is float32.

    Raises TypeError for a ``core`` that is none.
    """
    if not isinstance(core, Core):
        raise TypeError(f"core must be a dnirnn.Core; got {type(core).__name__}")
    own = copy.deepcopy(core).double().eval()
    laws: list[Callable[[Case], None]] = [
        shapes_fit,
        same_call_same_result,
        rows_are_apart,
        forward_is_the_loop,
        any_split_is_the_whole,
        chunks_are_the_cut_loop,
        dense_is_the_generic,
        vjp_is_the_generic,
        single_precision_stays,
    ]
    if compile:
        laws.append(compiled_is_eager)
    judge(type(core).__name__, laws, [make_case(own, shape, seed) for shape in SHAPES])


def make_case(core: Core, shape: Shape, seed: int) -> Case:
    first = next(core.parameters(), torch.zeros(()))
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=draw).to(first.device)

    T, _, B, t0, resets = shape
    x = normal(T, B, core.input_size)
    # A state that the core can be in: what it makes of an input in one step.
    with torch.no_grad():
        state = core.step(normal(B, core.input_size), core.initial_state(B), 0)[1].clone()
    reset = None
    if resets:
        reset = (torch.rand(T, B, generator=draw) < 0.3).to(first.device)
        reset[T // 2, 0] = True
    at = torch.tensor(t0, device=first.device) if isinstance(t0, tuple) else t0
    return Case(core, shape, x, state, at, reset, normal(T, B, core.output_size))


def loop(case: Case, detach_every: int | None = None, probe: Tensor | None = None):
    """The loop over step that everything else must equal: (outputs, the state after each step)."""
    core, state, t = case.core, case.state, case.t0
    initial = core.initial_state(case.shape.B)
    outputs, states = [], []
    for i, x in enumerate(case.x):
        if detach_every and i % detach_every == 0:
            state = state.detach()
            if probe is not None:
                state = state + probe[i // detach_every]
        if case.reset is not None:
            state = torch.where(case.reset[i, :, None], initial, state)
            t = torch.where(case.reset[i], 0, t)
        output, state = core.step(x, state, t)
        outputs.append(output)
        states.append(state)
        t = t + 1
    return torch.stack(outputs), torch.stack(states)


def with_gradients(case: Case, run: Callable[[Case], tuple[Tensor, Tensor]]):
    """(outputs, states, the gradients of a loss of both) of ``run``, inputs and state as leaves."""
    case = case._replace(
        x=case.x.clone().requires_grad_(), state=case.state.clone().requires_grad_()
    )
    output, state = run(case)
    loss = (output * case.weight).sum() + state.square().sum()
    leaves = [case.x, case.state, *(p for p in case.core.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return output.detach(), state.detach(), gradients


def same(case: Case, found, expected) -> None:
    close("outputs", found[0], expected[0])
    close("states", found[1], expected[1])
    names = ["x", "state", *(n for n, p in case.core.named_parameters() if p.requires_grad)]
    for name, one, other in zip(names, found[2], expected[2], strict=True):
        close(f"gradients of {name}", one, other)


def forward(case: Case) -> tuple[Tensor, Tensor]:
    return case.core(case.x, case.state, case.t0, case.reset)


def shapes_fit(case: Case) -> None:
    core, (T, _, B, *_) = case.core, case.shape
    output, state = forward(case)
    for what, tensor, size in (
        ("initial_state", core.initial_state(B), [B, core.state_size]),
        ("forward's outputs", output, [T, B, core.output_size]),
        ("forward's state", state, [B, core.state_size]),
        ("step's output", core.step(case.x[0], case.state, case.t0)[0], [B, core.output_size]),
        ("step's state", core.step(case.x[0], case.state, case.t0)[1], [B, core.state_size]),
    ):
        if list(tensor.shape) != size:
            raise AssertionError(f"{what} must be {size}; got {list(tensor.shape)}")


def same_call_same_result(case: Case) -> None:
    for what, first, again in zip(("outputs", "states"), forward(case), forward(case)):
        close(what, again, first, 0.0)


def rows_are_apart(case: Case) -> None:
    # Row 0 alone among others of another content: masks go by the row, so rows keep their places.
    output, state = forward(case)
    other = case._replace(x=case.x.clone(), state=case.state.clone())
    other.x[:, 1:] += 1.0
    other.state[1:] = case.core.initial_state(case.shape.B)[1:]
    changed = forward(other)
    close("outputs of a row, where the others differ,", changed[0][:, 0], output[:, 0])
    close("states of a row, where the others differ,", changed[1][0], state[0])


def forward_is_the_loop(case: Case) -> None:
    def by_step(case: Case) -> tuple[Tensor, Tensor]:
        outputs, states = loop(case)
        return outputs, states[-1]

    same(case, with_gradients(case, forward), with_gradients(case, by_step))


def any_split_is_the_whole(case: Case) -> None:
    whole = with_gradients(case, forward)
    for at in range(1, case.shape.T):

        def in_two(case: Case, at: int = at) -> tuple[Tensor, Tensor]:
            resets = (None, None) if case.reset is None else (case.reset[:at], case.reset[at:])
            head, state = case.core(case.x[:at], case.state, case.t0, resets[0])
            t = case.t0
            for i in range(at):
                t = (t if case.reset is None else torch.where(case.reset[i], 0, t)) + 1
            tail, state = case.core(case.x[at:], state, t, resets[1])
            return torch.cat([head, tail]), state

        same(case, with_gradients(case, in_two), whole)


def chunks_are_the_cut_loop(case: Case) -> None:
    N = -(-case.shape.T // case.shape.K)
    probe = 0.01 * torch.ones(N, *case.state.shape, dtype=torch.float64, device=case.x.device)

    def chunked(case: Case) -> tuple[Tensor, Tensor]:
        chunks = Chunks(case.shape.T, case.shape.K, case.t0, case.reset)
        return case.core.unroll(case.x, case.state.detach(), probe, chunks)[:2]

    def by_step(case: Case) -> tuple[Tensor, Tensor]:
        outputs, states = loop(case, case.shape.K, probe)
        ends = [min((n + 1) * case.shape.K, case.shape.T) - 1 for n in range(N)]
        return outputs, states[ends]

    same(case, with_gradients(case, chunked), with_gradients(case, by_step))


def dense_is_the_generic(case: Case) -> None:
    def results(unroll: Callable) -> list[Tensor]:
        size = (case.shape.T, *case.state.shape)
        probe = torch.zeros(size, dtype=torch.float64, device=case.x.device, requires_grad=True)
        chunks = Chunks(case.shape.T, case.shape.K, case.t0, case.reset, dense=True)
        output, end, start, *_ = unroll(case.x, case.state, probe, chunks)
        loss = (output * case.weight).sum() + end.square().sum()
        return [output, end, start, *torch.autograd.grad(loss, probe)]

    generic = results(lambda *arguments: Core.unroll(case.core, *arguments))
    for what, found, expected in zip(
        ("outputs", "ends", "starts", "targets"), results(case.core.unroll), generic
    ):
        close(f"{what} of dense chunks of unroll", found, expected)


def vjp_is_the_generic(case: Case) -> None:
    N = -(-case.shape.T // case.shape.K)

    def results(unroll: Callable) -> list[Tensor]:
        size = (N, *case.state.shape)
        probe = torch.zeros(size, dtype=torch.float64, device=case.x.device, requires_grad=True)
        chunks = Chunks(case.shape.T, case.shape.K, case.t0, case.reset, vjp=True)
        x = case.x.detach().requires_grad_()
        output, end, _, vjp, _ = unroll(x, case.state, probe, chunks)
        found = [output, end]
        for n, weight in zip(range(N), case.weight.split(case.shape.K)):
            of_end = torch.ones_like(case.state)
            found += [vjp(n, of_end)[0], *vjp(n, of_end, weight)]
        return found

    generic = results(lambda *arguments: Core.unroll(case.core, *arguments))
    for found, expected in zip(results(case.core.unroll), generic, strict=True):
        close("results of unroll with vjp", found, expected)


def single_precision_stays(case: Case) -> None:
    core = copy.deepcopy(case.core).float()
    state = core.initial_state(case.shape.B)
    output, state = core(case.x.float(), state)
    for what, tensor in (("output", output), ("state", state)):
        if tensor.dtype != torch.float32:
            raise AssertionError(f"a float32 core's {what} must be float32; got {tensor.dtype}")
    half = copy.deepcopy(case.core).to(torch.bfloat16).initial_state(case.shape.B)
    if half.dtype != torch.float32:
        raise AssertionError(f"a bfloat16 core's initial_state must be float32; got {half.dtype}")


def compiled_is_eager(case: Case) -> None:
    compiled = torch.compile(case.core, fullgraph=True, dynamic=False)
    run = with_gradients(case, lambda case: compiled(case.x, case.state, case.t0, case.reset))
    same(case, run, with_gradients(case, forward))
