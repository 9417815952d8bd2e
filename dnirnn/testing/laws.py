"""Laws that are tried case by case, and the report on those that do not hold."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

TOLERANCE = 1e-8


class Broken(NamedTuple):
    """A law that did not hold. law: its name; shape: of the case; found: what was seen there."""

    law: str
    shape: str
    found: str

    def __str__(self) -> str:
        return f"{self.law}, at {self.shape}: {self.found}"


class LawsBroken(AssertionError):
    """The laws that did not hold, each with the first shape at which it broke: ``broken``."""

    def __init__(self, subject: str, broken: list[Broken]):
        super().__init__("\n  ".join([f"{subject} breaks {len(broken)} laws:", *map(str, broken)]))
        self.broken = broken


def judge(subject: str, laws: Iterable[Callable], cases: list) -> None:
    broken = []
    for law in laws:
        for case in cases:
            try:
                law(case)
            except Exception as error:  # whatever a stranger's code raises is a finding
                text = " ".join(str(error).split())
                found = text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
                broken.append(Broken(law.__name__.replace("_", " "), str(case.shape), found))
                break
    if broken:
        raise LawsBroken(subject, broken)


def close(what: str, found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Raises AssertionError naming what differs, and by how much."""
    if found.shape != expected.shape:
        raise AssertionError(f"{what} must be {list(expected.shape)}; got {list(found.shape)}")
    found, expected = found.detach(), expected.detach()
    worst = float((found - expected).abs().max()) if found.numel() else 0.0
    if not worst <= tolerance * (1 + float(expected.abs().max()) if expected.numel() else 1):
        raise AssertionError(f"{what} differ by {worst:.3g}")
