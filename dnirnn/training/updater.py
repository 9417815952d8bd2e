"""Updater: one update of a model's parameters, which a CUDA graph can replay."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dnirnn.data import Batch
from dnirnn.distributed import Ranks
from dnirnn.interface import backward
from dnirnn.model import SequenceModel
from dnirnn.training.fused_update import can_fuse, finish
from dnirnn.training.optimizers import can_skip, norm_of, rescale, settings
from dnirnn.training.rates import Rates

# What is known of an update, in the order of a row.
FIGURES = ("nats", "estimator_error", "gradient_norm", "estimator_norm")
GRAPHS = 16  # kept at a time: updates of so many kinds
AHEAD = 1024  # updates that a device is let run ahead of the host, however rarely it logs

Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Updater:
    """One update: the gradients of a batch, clipped, and a step of every optimizer.

    Where the loss or a norm is not finite, no parameter, buffer or optimizer is changed. There are
    two ways of seeing to that, with the same outcome:

    watched: the host reads the loss and the norms in the middle of the update, and goes no further
        where one is not finite. Right on the CPU, where reading costs nothing.
    not watched: the device decides, and the host reads nothing until :meth:`read`. From the first
        update that is not finite on, none changes anything. What an update depends on are then
        tensors whose places stay: the batch, the state, t, the learning rates; an update is one
        function of them, and the second one of a kind is captured in a graph and replayed from then
        on. A kind is what stays in Python: shapes, ``final``, the estimator's scale, what the
        optimizers are set to. The optimizers must be able to skip a step (see ``can_skip``).

    model: its estimator's buffers are part of what an update changes.
    optimizers: of the model's core_parameters(), and of its estimator_parameters() if it has any.
    bounds: for each of them the smallest and the largest norm of the gradient, or None.
    rows, rows_at_once: the batch size, and how many of its rows are computed at once.
    unit: what the sum of a batch's nats is multiplied by (see ``backward``).
    watch: which of the two ways.
    capture: makes a graph of a function without arguments that works on tensors which stay where
        they are, without running it: what replays it. None: every update runs eagerly.
    capacity: updates not watched that may be made between two readings.
    ranks: the processes whose rows make the batch: gradients, and the figures, are of all.
    """

    undoes = True  # an update that was not finite has changed nothing

    def __init__(
        self,
        model: SequenceModel,
        optimizers: Sequence[torch.optim.Optimizer],
        bounds: Sequence[tuple[float | None, float | None]],
        rows: int,
        rows_at_once: int,
        unit: float,
        watch: bool = True,
        capture: Capture | None = None,
        capacity: int = 1,
        ranks: Ranks | None = None,
    ):
        self.ranks = ranks or Ranks()
        self.model, self.optimizers, self.bounds = model, list(optimizers), list(bounds)
        self.rows, self.rows_at_once, self.unit = rows, rows_at_once, unit
        self.parameters = [model.core_parameters(), model.estimator_parameters()]
        # What of the estimator an update changes without an optimizer.
        fixed = (p for p in self.parameters[1] if not p.requires_grad)
        self.buffers = [*model.truncated.estimator.buffers(), *fixed]
        self.watch, self.capture, self.capacity = watch, capture, capacity
        self.unread_rows: list[list[float]] = []
        # 1 from the first update on that was not finite; watched, whether the last one was.
        self.bad: Any = 0.0
        if watch:
            return
        unable = [type(one).__name__ for one in self.optimizers if not can_skip(one)]
        if unable:
            raise ValueError(f"watch must be True with {unable[0]}, which can't skip a step")
        device = self.parameters[0][0].device
        self.state: Tensor | None = None
        self.t = torch.zeros(rows, dtype=torch.int64, device=device)
        # Fused optimizers read both as float32, whatever the parameters and the default dtype are.
        kept = dict(dtype=torch.float32, device=device)
        self.rates = [torch.zeros((), **kept) for _ in self.optimizers]
        self.rates_set: list[float] = []
        self.bad = torch.zeros((), **kept)
        for optimizer in self.optimizers:
            optimizer.found_inf = self.bad
        self.figures = torch.zeros(capacity, len(FIGURES), dtype=torch.float64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.unread = 0
        self.fused = can_fuse(self.optimizers, self.parameters)
        # Kind of update: the batch that its graph reads and what replays it, or None so far.
        self.graphs: OrderedDict[tuple, tuple[Batch, Callable[[], None]] | None] = OrderedDict()

    def __call__(self, batch: Batch, state: Tensor, t: int) -> Tensor:
        """Makes the update; the state [B, S] that the batch ends in, or ``state`` where it made none.

        state, t: the state [B, S] to start from, and the steps since the sequence's start. What is
        returned without a watch is overwritten by the next update.
        """
        if not self.model.truncated.estimator.needs_context:
            batch = batch._replace(following=None, label=None)
        if self.watch:
            return self.watched(batch, state, t)
        if self.state is None:
            self.state = state.clone()
        elif state is not self.state:
            self.state.copy_(state)
        self.t.fill_(t)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        if rates != self.rates_set:
            self.rates_set = rates
            for tensor, rate in zip(self.rates, rates):
                tensor.fill_(rate)
        self.unread += 1
        if self.capture is None:
            self.unwatched(batch)
        else:
            self.replayed(batch)
        return self.state

    def read(self) -> list[list[float]]:
        """A row, as FIGURES has it, of every update since the last reading. Waits for the device."""
        if self.watch:
            rows, self.unread_rows = self.unread_rows, []
            return rows
        rows = self.figures[: self.unread].tolist()
        self.place.zero_()
        self.bad.zero_()
        self.unread = 0
        return rows

    def forget(self) -> None:
        """Drops what was not read, and the graphs: the optimizers' tensors may be others now."""
        self.read()
        if not self.watch:
            self.graphs.clear()

    @property
    def full(self) -> bool:
        """Whether it is to be read before the next update."""
        return self.watch or self.unread == self.capacity

    def watched(self, batch: Batch, state: Tensor, t: int) -> Tensor:
        kept = [buffer.clone() for buffer in self.buffers]
        ended, gradients, figures = self.add_gradients(batch, state, t)
        values = [*figures, *(norm_of(part) for part in gradients)]
        # The update's one synchronisation: everything that the host wants to know, at once.
        on_device = [value for value in values if isinstance(value, Tensor)]
        known = iter(torch.stack(on_device).tolist())
        row = [next(known) if isinstance(value, Tensor) else value for value in values]
        nats, _, *norms = row
        finite = math.isfinite(nats + sum(norms))
        self.bad = float(not finite)
        if finite:
            self.step(gradients, norms)
        else:
            with torch.no_grad():
                for buffer, before in zip(self.buffers, kept):
                    buffer.copy_(before)
        self.clear()
        self.unread_rows.append(row)
        return ended if finite else state

    def unwatched(self, batch: Batch) -> None:
        """The update from ``self.state`` at ``self.t``, without the host."""
        assert self.state is not None
        kept = [buffer.clone() for buffer in self.buffers]
        ended, gradients, figures = self.add_gradients(batch, self.state, self.t)
        if self.fused and all_float32(ended, *figures):
            nats, error = figures
            finish(
                self.optimizers, self.bounds, self.rates, nats,
                error if isinstance(error, Tensor) else None, ended, self.state, self.figures,
                self.place, self.bad,
            )  # fmt: skip
            self.clear()
            self.keep_where_bad(zip(self.buffers, kept))
            return
        with torch.no_grad():
            values = [*figures, *(norm_of(part) for part in gradients)]
            row = torch.stack([self.on_device(value) for value in values])
            nats, _, *norms = row.unbind()
            finite = torch.isfinite(nats + sum(norms))
            self.bad.copy_(torch.maximum(self.bad, (~finite).to(self.bad.dtype)))
            rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
            try:
                for optimizer, rate in zip(self.optimizers, self.rates):
                    optimizer.param_groups[0]["lr"] = rate
                self.step(gradients, norms)
            finally:
                for optimizer, rate in zip(self.optimizers, rates):
                    optimizer.param_groups[0]["lr"] = rate
            self.clear()
            before = self.state.clone()
            self.state.copy_(ended)
            self.keep_where_bad([(self.state, before), *zip(self.buffers, kept)])
            self.figures.index_copy_(0, self.place, row[None])
            self.place.add_(1)

    def keep_where_bad(self, buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Takes each of these back to what it was before, if an update was not finite."""
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(torch.where(self.bad == 0, buffer, before))

    def on_device(self, value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.double()
        # A kernel's argument: making a tensor of a number would copy it from the host.
        return torch.full((), value, dtype=torch.float64, device=self.bad.device)

    def replayed(self, batch: Batch) -> None:
        """The same by the graph of its kind. The first of a kind runs eagerly: it warms up."""
        kind = self.kind(batch)
        if kind not in self.graphs:
            self.graphs[kind] = None
            if len(self.graphs) > GRAPHS:
                self.graphs.popitem(last=False)
            self.unwatched(batch)
            return
        self.graphs.move_to_end(kind)
        graph = self.graphs[kind]
        if graph is None:
            assert self.capture is not None
            copied = replaced(batch, Tensor.clone)
            graph = self.graphs[kind] = copied, self.capture(lambda: self.unwatched(copied))
        fixed, replay = graph
        torch._foreach_copy_(tensors_of(fixed), tensors_of(batch))
        replay()

    def kind(self, batch: Batch) -> tuple:
        shapes = replaced(batch, lambda part: (tuple(part.shape), part.dtype))
        truncated = self.model.truncated
        cut = truncated.estimator.scale, getattr(truncated, "truncation", None)
        set_to = [{**settings(one), "lr": None} for one in self.optimizers]
        # Where a sequence begins, the state and t say so.
        return shapes._replace(first=False), *cut, self.unit, repr(set_to)

    def add_gradients(
        self, batch: Batch, state: Tensor, t: int | Tensor
    ) -> tuple[Tensor, list[list[Tensor]], list[Tensor | float]]:
        """Runs the batch piece by piece, adding to every .grad.

        Returns (the state it ends in, the gradients there are, of the core and of the estimator,
        the first two figures of FIGURES).
        """
        states, nats, errors = [], [], []
        pieces = self.rows // self.rows_at_once
        for start in range(0, self.rows, self.rows_at_once):
            rows = slice(start, start + self.rows_at_once)
            piece = batch if pieces == 1 else batch.rows(rows.start, rows.stop)
            since = t[rows] if isinstance(t, Tensor) else t
            weighted, ended, interfaces = self.model(piece, state[rows], since)
            total = weighted.sum()
            found = backward(total * self.unit, interfaces, self.unit)
            states.append(ended)
            nats.append(total.detach())
            errors += [found["estimator_error"]] if found else []
        if pieces > 1:
            error = torch.stack(errors).mean() if errors else 0.0
            ended, total = torch.cat(states), torch.stack(nats).sum()
        else:
            error = errors[0] if errors else 0.0
            ended, total = states[0], nats[0]
        both = (parameter for parameters in self.parameters for parameter in parameters)
        total, error = self.ranks.average(list(both), total, error)
        core, estimator = (
            [parameter.grad for parameter in parameters if parameter.grad is not None]
            for parameters in self.parameters
        )
        if pieces > 1 and estimator:
            # An estimator's regression is a mean over rows; the pieces' gradients were added up.
            torch._foreach_mul_(estimator, 1 / pieces)
        return ended, [core, estimator], [total, error]

    def step(self, gradients: list[list[Tensor]], norms: Sequence[float | Tensor]) -> None:
        """Brings each part's gradient, of the norm that is given, within its bounds, and steps."""
        for part, norm, bounds in zip(gradients, norms, self.bounds):
            rescale(part, norm, *bounds)
        for optimizer in self.optimizers:
            optimizer.step()

    def clear(self) -> None:
        for parameters in self.parameters:
            for parameter in parameters:
                parameter.grad = None


def all_float32(*values: Tensor | float) -> bool:
    return all(not isinstance(one, Tensor) or one.dtype == torch.float32 for one in values)


def replaced(batch: Batch, by: Callable[[Tensor], Any]) -> Batch:
    """The batch with ``by(tensor)`` in every tensor's place, in what follows it too."""
    return Batch._make(
        by(part) if isinstance(part, Tensor)
        else replaced(part, by) if isinstance(part, Batch)
        else part
        for part in batch
    )  # fmt: skip


def tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    replaced(batch, found.append)
    return found


class CUDAGraphs:
    """Captures updates on the current stream, which must not be the default one.

    The graphs share one pool of memory: nothing that one leaves there is read by another.
    """

    def __init__(self):
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """What replays ``run``. Raises ValueError where it does what no graph can hold."""
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream()):
                run()
        except RuntimeError as error:
            # torch leaves its generator as if the capture went on: it would refuse to draw again.
            generator.graphsafe_set_state(before)
            raise ValueError(
                "the update can't be captured in a CUDA graph; graphs=False (--no-graphs) runs it"
                f" without: {error}"
            ) from error
        return graph.replay


def make_updater(
    model: SequenceModel, rates: Rates, rows: int, unit: float, graphs: bool, ranks: Ranks
) -> Updater:
    """As a trainer asks for it: watched where the device is the CPU, or some part of an update needs it."""
    config, optimizers = rates.config, rates.optimizers
    safe = model.truncated.estimator.graph_safe and all(map(can_skip, optimizers))
    watch = not safe or model.core_parameters()[0].device.type != "cuda"
    return Updater(
        model,
        optimizers,
        [(config.min_norm, config.clip), (config.estimator_min_norm, config.estimator_clip)],
        rows,
        config.micro_batch or rows,
        unit,
        watch,
        None if watch or not graphs or ranks.size > 1 else CUDAGraphs(),
        min(config.log_every, AHEAD),
        ranks,
    )
