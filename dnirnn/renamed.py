"""Options and tensors by the names that they had before: taken for one release."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from dnirnn.options import flag

OPTIONS = {"lift": "min_norm", "estimator_lift": "estimator_min_norm", "blend": "ramp"}
# Of a LeastSquares, in a state_dict.
TENSORS = {"told_told": "second_moments", "target_told": "target_moments"}


def tensors_by_name_of_now(tensors: dict[str, Any]) -> dict[str, Any]:
    """The same tensors of a state_dict, in their order."""

    def name_of_now(path: str) -> str:
        module, dot, name = path.rpartition(".")
        return module + dot + TENSORS.get(name, name)

    return {name_of_now(path): tensor for path, tensor in tensors.items()}


def by_name_of_now(values: dict[str, Any], warn: bool = False) -> dict[str, Any]:
    """The same options; warn: where one has the name of before.

    Raises TypeError where an option is given by both names, but for nothing by the new one: as by
    dataclasses.replace, which adds what was there.
    """
    found = dict(values)
    for old in OPTIONS.keys() & values.keys():
        new, value = OPTIONS[old], found.pop(old)
        if warn:
            text = f"the option {old} is called {new} now; the old name goes with the next release"
            warnings.warn(text, DeprecationWarning, stacklevel=3)
        if found.get(new) and found[new] != value:
            raise TypeError(f"{old} and {new} are one option: give one; got {value!r}, {found[new]!r}")
        found[new] = value
    return found


def words_of_now(words: Sequence[str]) -> list[str]:
    """The same of a command line, with a line on stderr for each such flag."""
    flags = {flag(old): flag(new) for old, new in OPTIONS.items()}
    found = []
    for word in words:
        start, equals, value = word.partition("=")
        if start in flags:
            text = f"{start} is called {flags[start]} now; the old name goes with the next release"
            print(text, file=sys.stderr)
            word = flags[start] + equals + value
        found.append(word)
    return found
