"""Streams: where a trainer's batches come from, and text as one of them."""

import abc
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """What one call of a model sees: T steps of B rows.

    x: inputs, [T, B] symbols (long) or [T, B, I] (float).
    y: targets, [T, B] (long) or [T, B, O] (float).
    weight: [T, B] float, 1 where the step's target counts and 0 where not; None where all count.
        On the CPU, wherever the others are, so that counting does not wait for a device.
    first: every row starts a new sequence here (initial state, t = 0).
    final: every row's sequence really ends with this batch.
    following: the next step, a Batch of one; None where there is none, or it is not known.
    label: [B, C], what is known of a row's whole sequence; None where nothing is. Only an estimator
        may be told it, and of what follows.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    first: bool = False
    final: bool = False
    following: "Batch | None" = None
    label: Tensor | None = None

    def rows(self, start: int, end: int) -> "Batch":
        """The rows start to end of the batch, as a view."""
        x, y = self.x[:, start:end], self.y[:, start:end]
        weight = None if self.weight is None else self.weight[:, start:end]
        following = None if self.following is None else self.following.rows(start, end)
        label = None if self.label is None else self.label[start:end]
        return self._replace(x=x, y=y, weight=weight, following=following, label=label)

    def steps(self, start: int, end: int) -> "Batch":
        """The steps start to end, as a view, by themselves: nothing is said of what is around them."""
        weight = None if self.weight is None else self.weight[start:end]
        return Batch(self.x[start:end], self.y[start:end], weight, label=self.label)

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
        return after._replace(x=x, y=y, weight=weight, first=self.first)

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``, without waiting for it; itself where it is there."""
        parts = (self.x, self.y, self.weight, self.label)
        if all(part is None or part.device == device for part in parts):
            return self
        x, y, weight, label = (None if part is None else sent(part, device) for part in parts)
        following = None if self.following is None else self.following.to(device)
        return Batch(x, y, weight, self.first, self.final, following, label)

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
    """

    batch_size: int
    epochs: float

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


class TextStream(Stream):
    """One text as B contiguous parallel rows; the state is carried and never reset inside a row.

    Every symbol of the text is a target exactly once an epoch, and its input is the symbol before
    it: the first symbol of row i is predicted from the last one of row i - 1, the text's first
    symbol from ``first_input``. Rows differ by at most one in length; a short row's last step has
    weight 0. An epoch is one sequence a row: ``final`` at its end, then ``first``.

    symbols: LongTensor [n], n at least ``batch_size``. The batches are on its device, their weights
        on the CPU.
    first_input: what stands before the text, by custom the newline's symbol.

    Raises TypeError for symbols of another kind, ValueError for a text that is too short.
    """

    def __init__(self, symbols: Tensor, batch_size: int, first_input: int):
        if not isinstance(symbols, Tensor) or symbols.dtype != torch.long or symbols.dim() != 1:
            got = getattr(symbols, "dtype", type(symbols).__name__)
            raise TypeError(f"symbols must be a LongTensor [n]; got {got}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an int of at least 1; got {batch_size!r}")
        if len(symbols) < batch_size:
            raise ValueError(
                f"symbols must hold at least one symbol for each of batch_size={batch_size} rows;"
                f" got {len(symbols)}"
            )
        self.batch_size = batch_size
        shortest, self.long_rows = divmod(len(symbols), batch_size)
        self.steps = shortest + (self.long_rows > 0)
        row = torch.arange(batch_size, device=symbols.device)
        start = row * shortest + row.clamp(max=self.long_rows)
        step = torch.arange(self.steps + 1, device=symbols.device)
        text = torch.cat([symbols.new_tensor([first_input]), symbols])
        # [steps + 1, B]: inputs are all but the last step of it, targets all but the first.
        self.layout = text[(start + step[:, None]).clamp_(max=len(symbols))]
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
        following = None if final else self.part(end, end + 1)
        return self.part(start, end)._replace(first=start == 0, final=final, following=following)

    def part(self, start: int, end: int) -> Batch:
        weight = None
        if end == self.steps and self.long_rows:
            weight = torch.ones(end - start, self.batch_size)
            weight[-1, self.long_rows :] = 0
        return Batch(self.layout[start:end], self.layout[start + 1 : end + 1], weight)

    def to(self, device: torch.device) -> None:
        self.layout = self.layout.to(device)

    def state_dict(self) -> dict:
        return {"position": self.position, "epoch": self.epoch}

    def load_state_dict(self, state: dict) -> None:
        if not 0 <= state["position"] < self.steps:
            raise ValueError(
                f"position must be in this text's {self.steps} steps; got {state['position']}"
            )
        self.position, self.epoch = state["position"], state["epoch"]


class Vocabulary:
    """Characters and their symbols 0, 1, ..., in the order of their code points.

    characters: the distinct characters, one string.
    """

    def __init__(self, characters: str):
        if len(set(characters)) != len(characters) or not characters:
            raise ValueError(f"characters must be distinct, at least one; got {characters!r}")
        self.characters = characters
        codes = code_points(characters)
        self.table = np.full(codes.max() + 1, -1, dtype=np.int64)
        self.table[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, text: str) -> "Vocabulary":
        """The characters of a training text and the newline, which stands before every text."""
        if not text:
            raise ValueError("text must not be empty")
        return cls("".join(sorted({*text, "\n"})))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The symbols of a text, LongTensor [n].

        Raises ValueError naming the first character that is not in the vocabulary, and where.
        """
        codes = code_points(text)
        symbols = self.table[np.minimum(codes, len(self.table) - 1)]
        unknown = (symbols < 0) | (codes >= len(self.table))
        if unknown.any():
            at = int(unknown.argmax())
            line = text.count("\n", 0, at) + 1
            raise ValueError(
                f"text has the character {text[at]!r} at offset {at} (line {line}),"
                f" which is not among the {len(self)} of the training text"
            )
        return torch.from_numpy(symbols)

    def decode(self, symbols: Tensor) -> str:
        """The text of symbols [n]."""
        return "".join(self.characters[symbol] for symbol in symbols.tolist())

    def to_json(self) -> str:
        """What :meth:`from_json` takes back: the characters themselves."""
        return self.characters

    @classmethod
    def from_json(cls, value: str) -> "Vocabulary":
        return cls(value)


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
