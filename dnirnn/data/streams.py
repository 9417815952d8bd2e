"""Streams: where a trainer's batches come from, and text as one of them."""

import abc
import copy
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.checks import check_sizes, is_int, shown


class Batch(NamedTuple):
    """What one call of a model sees: T steps of B rows.

    x: inputs, [T, B] symbols (long) or [T, B, I] (float).
    y: targets, [T, B] (long) or [T, B, O] (float).
    weight: [T, B] float, 1 where the step's target counts and 0 where not; None where all count.
        On the CPU, wherever the others are, so that counting does not wait for a device.
    first: every row starts a new sequence here (initial state, t = 0).
    final: every row's sequence really ends with this batch.
    following: the next steps, a Batch of at least one; None where there is none, or it is not known.
    label: [B, C], what is known of a row's whole sequence; None where nothing is. Only an estimator
        may be conditioned on it, and of what follows.
    soft: [T, B, V], how likely each symbol is to others than the text: what teachers predict (see
        Distillation). None: the targets are all there is to learn.
    times: [T, B] float64, when the steps are, never decreasing in a row; None: one after the other.
        Only a core that takes times is given them.
    before: inputs [O, B, ...], as x, of the steps before that a model runs once more, for the gradient
        to go back through them (see ``overlap`` of Truncated); None: there are none.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    first: bool = False
    final: bool = False
    following: "Batch | None" = None
    label: Tensor | None = None
    soft: Tensor | None = None
    times: Tensor | None = None
    before: Tensor | None = None

    def rows(self, start: int, end: int) -> "Batch":
        """The rows start to end of the batch, as a view."""
        x, y = self.x[:, start:end], self.y[:, start:end]
        weight = None if self.weight is None else self.weight[:, start:end]
        following = None if self.following is None else self.following.rows(start, end)
        label = None if self.label is None else self.label[start:end]
        soft = None if self.soft is None else self.soft[:, start:end]
        times = None if self.times is None else self.times[:, start:end]
        before = None if self.before is None else self.before[:, start:end]
        return Batch(x, y, weight, self.first, self.final, following, label, soft, times, before)

    def steps(self, start: int, end: int) -> "Batch":
        """The steps start to end, as a view, by themselves, without what is around them."""
        weight = None if self.weight is None else self.weight[start:end]
        soft = None if self.soft is None else self.soft[start:end]
        times = None if self.times is None else self.times[start:end]
        x, y = self.x[start:end], self.y[start:end]
        return Batch(x, y, weight, label=self.label, soft=soft, times=times)

    def piece(self, start: int, end: int) -> "Batch":
        """The steps start to end of a batch of whole sequences, as a view."""
        following = self.steps(end, end + 1) if end < len(self.x) else None
        part = self.steps(start, end)
        return part._replace(first=start == 0, final=following is None, following=following)

    def then(self, after: "Batch") -> "Batch":
        """This batch and the one that comes after it, as one."""
        weight = None
        if self.weight is not None or after.weight is not None:
            all_count = (torch.ones(part.x.shape[:2], device=part.x.device) for part in (self, after))
            given = (self.weight, after.weight)
            weight = torch.cat([b if a is None else a for a, b in zip(given, all_count)])
        x, y = torch.cat([self.x, after.x]), torch.cat([self.y, after.y])
        soft = None if self.soft is None else torch.cat([self.soft, after.soft])
        times = None if self.times is None else torch.cat([self.times, after.times])
        return after._replace(
            x=x, y=y, weight=weight, first=self.first, soft=soft, times=times, before=self.before
        )

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``, without waiting for it; itself where it is there."""
        parts = (self.x, self.y, self.weight, self.label, self.soft, self.times, self.before)
        if all(part is None or part.device == device for part in parts):
            return self
        x, y, weight, *others = (None if one is None else sent(one, device) for one in parts)
        following = None if self.following is None else self.following.to(device)
        return Batch(x, y, weight, self.first, self.final, following, *others)

    def count(self) -> int:
        """How many targets count. Waits for nothing where the weight is on the CPU."""
        if self.weight is None:
            return self.x.shape[0] * self.x.shape[1]
        return round(float(self.weight.sum()))


def sent(part: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``; from the CPU by way of memory that a GPU can copy on its own."""
    if device.type == "cuda" and part.device.type == "cpu":
        part = part.pin_memory()
    return part.to(device, non_blocking=True)


class Stream(abc.ABC):
    """An endless source of batches of ``batch_size`` rows, whose place can be saved and restored.

    Whatever is random comes from a torch.Generator of the stream's own, kept in its state_dict.

    epochs: how often everything there is was seen, a float; for an endless task, sequences begun.
    unbroken: a sequence goes on over many updates, so that a mask drawn for one of them (weight
        drop, zoneout) would be the only one for long: a trainer draws another each update.
    epoch_steps: steps of an epoch, where every epoch is the same sequence in the same rows, and its next
        batch starts at the sequence's step ``position``; else None.
    """

    batch_size: int
    epochs: float
    unbroken: bool = False
    epoch_steps: int | None = None
    position: int

    @abc.abstractmethod
    def next(self, steps: int | None) -> Batch:
        """The next ``steps`` steps, or as many as are left of the sequence; None: all that is left.

        Never crosses a sequence's end. Raises ValueError for less than one step.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict:
        """Its place: numbers, strings, lists, dicts and tensors, none of them changed later."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict) -> None:
        """Goes on bit for bit from where ``state`` was taken."""

    def to(self, device: torch.device) -> None:
        """Told where its batches are wanted; one that can make them there may move its data."""

    def observe(self, bits: float) -> None:
        """Told the mean bits per target of every sequence that ends; a curriculum may react."""

    def from_start(self) -> "Stream":
        """Another stream of the same sequence, at its start.

        Raises NotImplementedError where ``epoch_steps`` is None.
        """
        raise NotImplementedError(f"the epochs of {type(self).__name__} are not one sequence")

    def share(self, rank: int, ranks: int) -> "Stream":
        """The rows of one of several processes, in order; its state_dict is that of the whole stream.

        Every rank must ask for the same steps. The stream itself is then to be left alone.

        Raises ValueError where the ranks can't have equally many rows.
        """
        return Share(self, rank, ranks)


class Share(Stream):
    """What :meth:`Stream.share` gives of any stream: the whole batch is made, and its rows taken."""

    def __init__(self, stream: Stream, rank: int, ranks: int):
        self.stream, self.own = stream, rows_of_rank(stream.batch_size, rank, ranks)
        self.batch_size, self.unbroken = self.own.stop - self.own.start, stream.unbroken

    @property
    def epochs(self) -> float:
        return self.stream.epochs

    def next(self, steps: int | None) -> Batch:
        return self.stream.next(steps).rows(self.own.start, self.own.stop)

    def state_dict(self) -> dict:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.stream.load_state_dict(state)

    def to(self, device: torch.device) -> None:
        self.stream.to(device)

    def observe(self, bits: float) -> None:
        self.stream.observe(bits)


def rows_of_rank(batch_size: int, rank: int, ranks: int) -> slice:
    """A rank's rows of a batch. Raises ValueError where they can't be shared equally."""
    rows, left = divmod(batch_size, ranks)
    if left or not rows:
        raise ValueError(
            f"the batch size must be a multiple of {ranks}, the ranks that share it; got {batch_size}"
        )
    return slice(rank * rows, (rank + 1) * rows)


BLOCK = 2**22  # symbols of a text that are laid out in rows at once
INTEGERS = (torch.uint8, torch.uint16, torch.int32, torch.long)


def taken(symbols: Tensor, index: Tensor) -> Tensor:
    """symbols[index] as a LongTensor; symbols [n] of uint8, uint16, int32 or int64."""
    if symbols.dtype == torch.uint16:  # which torch does not index on every device
        return symbols.view(torch.int16)[index].long() & 0xFFFF
    return symbols[index].long()


class TextStream(Stream):
    """One text as B contiguous parallel rows; the state is carried and never reset inside a row.

    Every symbol of the text is a target exactly once an epoch, and its input is the symbol before
    it: the first symbol of row i is predicted from the last one of row i - 1, the text's first
    symbol from ``first_input``. Rows differ by at most one in length; a short row's last step has
    weight 0. An epoch is one sequence a row: ``final`` at its end, then ``first``.

    The text itself is not copied, so that it may be larger than the memory (a file mapped into it);
    a stretch of it at a time is laid out in rows.

    symbols: LongTensor [n], or one of uint8, uint16 or int32; n at least ``batch_size``. The batches
        are on its device, their weights on the CPU.
    first_input: what stands before the text, by custom the newline's symbol.

    Raises TypeError for symbols of another kind, ValueError for a text that is too short or a
    first_input that is no symbol.
    """

    unbroken = True

    def __init__(self, symbols: Tensor, batch_size: int, first_input: int):
        known = isinstance(symbols, Tensor) and symbols.dtype in INTEGERS and symbols.dim() == 1
        if not known:
            got = getattr(symbols, "dtype", type(symbols).__name__)
            raise TypeError(f"symbols must be a LongTensor [n], or of smaller ints; got {got}")
        check_sizes(batch_size=batch_size)
        if not is_int(first_input, 0):
            raise ValueError(f"first_input must be a symbol, an int of at least 0; got {shown(first_input)}")
        if len(symbols) < batch_size:
            raise ValueError(
                f"symbols must hold at least one symbol for each of batch_size={batch_size} rows;"
                f" got {len(symbols)}"
            )
        self.symbols, self.batch_size, self.first_input = symbols, batch_size, first_input
        shortest, self.long_rows = divmod(len(symbols), batch_size)
        self.first_row, self.uneven = 0, self.long_rows > 0
        self.steps = self.epoch_steps = shortest + self.uneven
        row = torch.arange(batch_size, device=symbols.device)
        self.start = row * shortest + row.clamp(max=self.long_rows)
        self.laid_out, self.block = range(0), self.start
        self.position, self.epoch = 0, 0

    @property
    def epochs(self) -> float:
        return self.epoch + self.position / self.steps

    def next(self, steps: int | None) -> Batch:
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, or None; got {steps}")
        start = self.position
        end = self.steps if steps is None else min(start + steps, self.steps)
        final = end == self.steps
        self.position = 0 if final else end
        self.epoch += final
        self.lay_out(start, end if final else end + 1)
        following = None if final else self.part(end, end + 1)
        return self.part(start, end)._replace(first=start == 0, final=final, following=following)

    def lay_out(self, start: int, end: int) -> None:
        """Has the steps from start to end in the block: [steps + 1, B], inputs, then targets."""
        if start in self.laid_out and end <= self.laid_out.stop:
            return
        stop = min(self.steps, max(end, start + BLOCK // self.batch_size))
        step = torch.arange(start - 1, stop, device=self.start.device)
        place = (self.start + step[:, None]).clamp_(0, len(self.symbols) - 1)
        self.laid_out, self.block = range(start, stop), taken(self.symbols, place)
        if start == 0 and self.first_row == 0:
            self.block[0, 0] = self.first_input

    def part(self, start: int, end: int) -> Batch:
        weight = None
        if end == self.steps and self.uneven:
            weight = torch.ones(end - start, self.batch_size)
            weight[-1, max(0, self.long_rows - self.first_row) :] = 0
        first = start - self.laid_out.start
        block = self.block[first : first + end - start + 1]
        return Batch(block[:-1], block[1:], weight)

    def from_start(self) -> "TextStream":
        other = copy.copy(self)
        other.position = other.epoch = 0
        return other

    def share(self, rank: int, ranks: int) -> "TextStream":
        rows, own = rows_of_rank(self.batch_size, rank, ranks), copy.copy(self)
        own.start, own.laid_out = self.start[rows], range(0)
        own.first_row = self.first_row + rows.start
        own.batch_size = len(own.start)
        return own

    def to(self, device: torch.device) -> None:
        self.symbols, self.start = self.symbols.to(device), self.start.to(device)
        self.laid_out = range(0)

    def state_dict(self) -> dict:
        return {"position": self.position, "epoch": self.epoch}

    def load_state_dict(self, state: dict) -> None:
        if not 0 <= state["position"] < self.steps:
            raise ValueError(
                f"position must be in this text's {self.steps} steps; got {state['position']}"
            )
        self.position, self.epoch = state["position"], state["epoch"]
