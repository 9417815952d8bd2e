"""Core: everything that recurs, from one cell to a whole stack.

Letters: T steps, B batch, I input, O output, S state, N chunks, K steps a chunk.
"""

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Pull = Callable[[int, Tensor], Tensor]


class Core(nn.Module, abc.ABC):
    """A recurrent network: a function of (input, state) applied once per step.

    ``step`` is the specification. ``forward`` is the loop over ``step``, or a faster path that is
    equal to it; a subclass writes ``step`` and sets ``input_size``, ``output_size`` and
    ``state_size``, and may override the rest for speed.

    The state is one tensor [B, S], whatever the core is made of: a stack concatenates the states of
    its parts along the last dimension.

    A core that adds to the loss itself (a price for what it does) sets ``charges`` to None in its
    constructor. While :class:`dnirnn.Truncated` runs it, or a stack that it is a part of,
    ``charges`` is a list, to which it appends what the sequences' own losses grow by: 0-d tensors,
    summed over rows, attached to the graph.
    """

    input_size: int
    output_size: int
    state_size: int
    charges: list[Tensor] | None

    def initial_state(self, batch_size: int) -> Tensor:
        """The state [B, S] a sequence starts from: zeros, in at least float32."""
        parameter = next(self.parameters(), None)
        if parameter is None:
            raise NotImplementedError(f"{type(self).__name__} has no parameters: write initial_state")
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return torch.zeros(batch_size, self.state_size, dtype=dtype, device=parameter.device)

    @abc.abstractmethod
    def step(self, x_BI: Tensor, state_BS: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """One step: (output [B, O], next state [B, S]).

        ``t`` counts the steps since the sequence's start: an int, or a LongTensor [B] where the
        rows of a batch started at different times.
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
            output, state = self.step(x_BI, state, t)
            outputs.append(output)
            t = t + 1
        return torch.stack(outputs), state

    def unroll_chunks(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe_NBS: Tensor | Sequence[Tensor] | None,
        truncation: int,
        t0: int | Tensor = 0,
        reset: Tensor | None = None,
        estimator: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Unrolls N = ceil(T / K) chunks, each cut from the one before.

        Chunk 0 starts from ``state``, chunk n from ``sent[n-1].detach()``, each with ``probe[n]``
        added (None: nothing is added). Returns (outputs [T, B, O], sent [N, B, S], synthetic
        [N, B, S] or None). A core that overrides this method may compute synthetic = estimator.scale
        * estimator(sent), detached, on the way; with None it leaves that to Truncated.
        """
        outputs, sent, state = [], [], state_BS
        for n, x_KBI in enumerate(x_TBI.split(truncation)):
            start = state if probe_NBS is None else state + probe_NBS[n]
            rows = slice(n * truncation, n * truncation + len(x_KBI))
            reset_KB = None if reset is None else reset[rows]
            output, end = self(x_KBI, start, advance(t0, reset, n * truncation), reset_KB)
            outputs.append(output)
            sent.append(end)
            state = end.detach()
        return torch.cat(outputs), torch.stack(sent), None

    def unroll_pulling(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe_NBS: Tensor,
        truncation: int,
        t0: int | Tensor = 0,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Pull]:
        """Unrolls as unroll_chunks does: (outputs [T, B, O], sent [N, B, S], pull).

        ``pull(n, v)`` is J_n' v, [B, S], detached: what a gradient v of sent[n], and nothing else,
        sends back to the state that chunk n starts from. It takes one chunk's backward pass.
        """
        pieces = probe_NBS.unbind()
        output, sent, _ = Core.unroll_chunks(
            self, x_TBI, state_BS, pieces, truncation, t0, reset
        )

        def pull(n: int, gradient_BS: Tensor) -> Tensor:
            # Of all chunks' ends only this one's depends on the piece.
            seeds = gradient_BS.expand_as(sent)
            return torch.autograd.grad(
                sent, pieces[n], seeds, retain_graph=True, materialize_grads=True
            )[0]

        return output, sent, pull

    def unroll_dense(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        probe_TBS: Tensor,
        truncation: int,
        t0: int | Tensor = 0,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Unrolls as unroll_chunks does, with probe[t] added to the state that step t starts from.

        Returns (outputs [T, B, O], sent [N, B, S], entered [T, B, S]: those states without their
        probes, detached).
        """
        outputs, sent, entered, state, t = [], [], [], state_BS, t0
        for i in range(len(x_TBI)):
            if i and i % truncation == 0:
                sent.append(state)
                state = state.detach()
            entered.append(state.detach())
            reset_1B = None if reset is None else reset[i : i + 1]
            output, state = self(x_TBI[i : i + 1], state + probe_TBS[i], t, reset_1B)
            outputs.append(output)
            t = t + 1 if reset is None else torch.where(reset[i], 0, t) + 1
        return torch.cat(outputs), torch.stack([*sent, state]), torch.stack(entered)


def advance(t0: int | Tensor, reset: Tensor | None, steps: int) -> int | Tensor:
    """The t of the step ``steps`` after the one at ``t0``: counted from the row's last reset."""
    if reset is None or steps == 0:
        return t0 + steps
    index = torch.arange(steps, device=reset.device)[:, None]
    last = torch.where(reset[:steps], index, -1).amax(0)
    return torch.where(last >= 0, steps - last, t0 + steps)
