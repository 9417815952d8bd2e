"""Vocabulary: the characters of a text, and the symbols that stand for them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from dnirnn.checks import check_flags, shown


class Vocabulary:
    """Characters and their symbols 0, 1, ..., in the order of their code points.

    characters: the distinct characters, one string.
    unknown: one more symbol, the last, stands for every other character (``unknown``: its number,
        or None).
    """

    unit, units = "character", "characters"

    def __init__(self, characters: str, unknown: bool = False):
        if not isinstance(characters, str):
            raise TypeError(f"characters must be one string; got {shown(characters)}")
        check_flags(unknown=unknown)
        if len(set(characters)) != len(characters) or not characters:
            raise ValueError(f"characters must be distinct, at least one; got {characters!r}")
        self.characters = characters
        self.unknown = len(characters) if unknown else None
        codes = code_points(characters)
        self.table = np.full(codes.max() + 1, -1, dtype=np.int64)
        self.table[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, text: Iterable[str], unknown: bool = False) -> "Vocabulary":
        """The characters of a training text, or of its pieces, and the newline before every text."""
        characters: set[str] = set()
        for piece in [text] if isinstance(text, str) else text:
            characters.update(piece)
        if not characters:
            raise ValueError("text must not be empty")
        return cls("".join(sorted({*characters, "\n"})), unknown)

    @staticmethod
    def parts(pieces: Iterable[str]) -> Iterable[str]:
        """The same text in pieces that can be encoded one by one."""
        return pieces

    def lacks(self, text: str) -> bool:
        """Whether the text has a character that is none of these."""
        return not set(text) <= set(self.characters)

    def __len__(self) -> int:
        return len(self.characters) + (self.unknown is not None)

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint8, uint16 and int32 that holds its symbols."""
        small = np.min_scalar_type(len(self) - 1)
        return small if small.itemsize < 4 else np.dtype(np.int32)

    def encode(self, text: str) -> Tensor:
        """The symbols of a text, LongTensor [n].

        Raises ValueError naming the first character that is not in the vocabulary, and where, if no
        symbol stands for the unknown.
        """
        symbols, unknown = self.find(text)
        if unknown.any() and self.unknown is None:
            at = int(unknown.argmax())
            line = text.count("\n", 0, at) + 1
            raise ValueError(
                f"text has the character {text[at]!r} at offset {at} (line {line}),"
                f" which is not among the {len(self)} of the training text"
            )
        symbols[unknown] = self.unknown or 0
        return torch.from_numpy(symbols)

    def find(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(symbols [n], whether a character is unknown [n])."""
        codes = code_points(text)
        symbols = self.table[np.minimum(codes, len(self.table) - 1)]
        return symbols, (symbols < 0) | (codes >= len(self.table))

    def decode(self, symbols: Tensor) -> str:
        """The text of symbols [n]; U+FFFD where one is the unknown."""
        characters = self.characters + "\ufffd"
        return "".join(characters[symbol] for symbol in symbols.tolist())

    def to_json(self) -> str | dict:
        """What :meth:`from_json` takes back: the characters, and that there is one more symbol."""
        if self.unknown is None:
            return self.characters
        return {"characters": self.characters, "unknown": True}

    @classmethod
    def from_json(cls, value: str | dict) -> "Vocabulary":
        return cls(**value) if isinstance(value, dict) else cls(value)


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
