"""What arguments must be: errors of one line with the argument's name, its value and what it must be."""

import math
import os
from collections.abc import Sequence

from torch import Tensor, nn


def shown(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}(...)"
    words = " ".join(repr(value).split())
    return words if len(words) <= 80 else f"{words[:77]}..."


def is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_sizes(least: int = 1, **sizes: int) -> None:
    """Raises ValueError naming the size that is no int of at least ``least``."""
    for name, size in sizes.items():
        if not is_int(size, least):
            raise ValueError(f"{name} must be an int of at least {least}; got {shown(size)}")


def check_sequences(**sequences: Sequence[int]) -> None:
    """Raises TypeError or ValueError naming what is no sequence of ints of at least 1."""
    for name, sizes in sequences.items():
        if not isinstance(sizes, Sequence) or isinstance(sizes, (str, bytes)):
            raise TypeError(f"{name} must be a sequence of ints, () for none; got {shown(sizes)}")
        for size in sizes:
            if not is_int(size, 1):
                raise ValueError(f"{name} must be ints of at least 1; got {shown(size)}")


def check_numbers(**numbers: float) -> None:
    """Raises TypeError or ValueError naming the number that is none, or not finite."""
    for name, value in numbers.items():
        if not is_number(value):
            raise TypeError(f"{name} must be a number; got {shown(value)}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value!r}")


def check_knobs(**knobs: float) -> None:
    """Raises TypeError or ValueError naming the number that is none, or negative or not finite.

    A trace_decay is at most 1.
    """
    for name, value in knobs.items():
        if not is_number(value):
            raise TypeError(f"{name} must be a number; got {shown(value)}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative; got {value!r}")
        if name == "trace_decay" and value > 1:
            raise ValueError(f"trace_decay must be at most 1; got {value!r}")


def check_positive(**numbers: float) -> None:
    """Raises TypeError or ValueError naming the number that is none, or not positive and finite."""
    for name, value in numbers.items():
        if not is_number(value):
            raise TypeError(f"{name} must be a number; got {shown(value)}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite; got {value!r}")


def check_probabilities(**probabilities: float) -> None:
    """Raises TypeError or ValueError naming the number that is none, or not in [0, 1)."""
    for name, value in probabilities.items():
        if not is_number(value):
            raise TypeError(f"{name} must be a number; got {shown(value)}")
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be a probability in [0, 1); got {value!r}")


def check_flags(**flags: bool) -> None:
    """Raises TypeError naming what is neither True nor False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False; got {shown(value)}")


def check_words(words: Sequence[str], **given: str) -> None:
    """Raises ValueError naming what is none of the words."""
    for name, value in given.items():
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"{name} must be one of {', '.join(words)}; got {shown(value)}")


def check_tensors(**tensors: Tensor) -> None:
    """Raises TypeError naming what is no tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")


def check_instances(kind: type, **given: object) -> None:
    """Raises TypeError naming what is none of that kind."""
    for name, value in given.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}; got {shown(value)}")


def check_list(name: str, given: Sequence, kind: type | tuple[type, ...]) -> None:
    """Raises TypeError naming what is no list of such things."""
    if not isinstance(given, (list, tuple, nn.ModuleList)):
        raise TypeError(f"{name} must be a list; got {shown(given)}")
    for one in given:
        if not isinstance(one, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            words = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
            raise TypeError(f"{name} must be of {words}; got {shown(one)}")


def check_paths(**paths: str | os.PathLike) -> None:
    """Raises TypeError naming what is no path."""
    for name, value in paths.items():
        if not isinstance(value, (str, os.PathLike)):
            raise TypeError(f"{name} must be a path; got {shown(value)}")
