"""Words and their symbols: the vocabulary of a language model by words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

UNKNOWN = "<unk>"  # by custom, a rare word


class Words:
    """Words and their symbols 0, 1, ...: what stands between spaces, and a line's end, one word.

    A word that is none of them is ``<unk>`` where that is one of them (as in Penn Treebank). Else one
    more symbol, the last, may stand for it, which is no word.

    words: distinct, with the newline; ``unknown``: that there is one more symbol (then its number, or
    None).

    Raises ValueError for words that are not distinct, or are without the newline.
    """

    unit, units = "word", "words"
    convention = "words are what stands between spaces, and every line's end is one"

    def __init__(self, words: Sequence[str], unknown: bool = False):
        self.words = list(words)
        self.index = {word: symbol for symbol, word in enumerate(self.words)}
        if len(self.index) != len(self.words) or "\n" not in self.index:
            raise ValueError(f"words must be distinct, the newline among them; got {len(words)} words")
        self.unknown = len(self.words) if unknown else None

    @classmethod
    def of(cls, text: Iterable[str], unknown: bool = False, rarest: int = 1) -> "Words":
        """The words of a training text's pieces, the most frequent first.

        rarest: those that it has less often become ``<unk>``.
        """
        counts: Counter[str] = Counter()
        for piece in cls.parts([text] if isinstance(text, str) else text):
            counts.update(split(piece))
        if not counts:
            raise ValueError("text must not be empty")
        known = {word: n for word, n in counts.items() if n >= rarest or word in ("\n", UNKNOWN)}
        if len(known) < len(counts):
            known.setdefault(UNKNOWN, 0)
        known.setdefault("\n", 0)
        return cls(sorted(known, key=lambda word: (-known[word], word)), unknown)

    @staticmethod
    def parts(pieces: Iterable[str]) -> Iterator[str]:
        """The same text in pieces that end between words."""
        left = ""
        for piece in pieces:
            left += piece
            end = max(left.rfind(" "), left.rfind("\n")) + 1
            if end:
                yield left[:end]
                left = left[end:]
        if left:
            yield left

    def lacks(self, text: str) -> bool:
        """Whether the text has a word that no symbol of these words stands for."""
        return UNKNOWN not in self.index and not set(split(text)) <= self.index.keys()

    def __len__(self) -> int:
        return len(self.words) + (self.unknown is not None)

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint8, uint16 and int32 that holds its symbols."""
        small = np.min_scalar_type(len(self) - 1)
        return small if small.itemsize < 4 else np.dtype(np.int32)

    def encode(self, text: str) -> Tensor:
        """The symbols of a text, LongTensor [n].

        Raises ValueError naming the first word that no symbol stands for.
        """
        symbols, unknown = self.find(text)
        if unknown.any() and self.unknown is None:
            word = split(text)[int(unknown.argmax())]
            raise ValueError(
                f"text has the word {word!r}, which is not among the {len(self)} of the training text"
            )
        symbols[unknown] = self.unknown or 0
        return torch.from_numpy(symbols)

    def find(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(symbols [n], whether no word's symbol stands for it [n])."""
        rare = self.index.get(UNKNOWN, -1)
        found = [self.index.get(word, rare) for word in split(text)]
        symbols = np.array(found, dtype=np.int64)
        return symbols, symbols < 0

    def decode(self, symbols: Tensor) -> str:
        """The text of symbols [n], words with a space between; U+FFFD where one is no word."""
        words = [*self.words, "\ufffd"]
        return " ".join(words[symbol] for symbol in symbols.tolist()).replace(" \n", "\n").replace("\n ", "\n")

    def to_json(self) -> dict:
        """What :meth:`from_json` takes back."""
        return {"words": self.words, "unknown": self.unknown is not None}

    @classmethod
    def from_json(cls, value: dict) -> "Words":
        return cls(**value)


def split(text: str) -> list[str]:
    """The words of a text, in order."""
    return [word for word in text.replace("\n", " \n ").split(" ") if word]
