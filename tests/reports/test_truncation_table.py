"""reproduce truncation: gains over BPTT of the same seed, and the share of the ceiling that they are."""

import pytest

from dnirnn.reports.curves import Point
from dnirnn.reports.recipes import BPTT, Column
from dnirnn.reports.tables import Trace
from dnirnn.reports.truncation import ARMS, RECIPES, TRUE, shares

RECIPE = RECIPES["truncation"]("quick")
(READER,) = (arm for arm in ARMS if arm.name == "reader-auto")


def trace(arm, bits, truncation=2, seconds=1.0) -> Trace:
    curve = [Point(100 * (i + 1), seconds * (i + 1), i + 1, one) for i, one in enumerate(bits)]
    return Trace(Column(arm, truncation, "none"), None, curve, {"stopped": "symbols"})


def line(lines, axis, label):
    start = next(i for i, one in enumerate(lines) if one.endswith(f"after equal {axis}"))
    return next(one for one in lines[start:] if one.startswith(f"| {label} |"))


def test_gains_are_of_one_seed_and_stand_beside_the_ceiling():
    traces = [
        trace(BPTT, [3, 2.0]), trace(BPTT, [3, 2.2]), trace(BPTT, [3, 2.1]),
        trace(TRUE, [3, 1.8]), trace(TRUE, [3, 2.0]), trace(TRUE, [3, 1.9]),
        trace(READER, [3, 1.95]), trace(READER, [3, 2.25]), trace(READER, [3, 2.0]),
        trace(BPTT, [3, 2.0], 40),
    ]  # fmt: skip
    lines = shares(RECIPE, traces)
    said = line(lines, "characters", READER.label)
    assert said == f"| {READER.label} | +0.0500 (-0.0500 to +0.1000), 1 lost: 25% of 0.2000 |"
    assert line(lines, "updates", TRUE.label) == f"| {TRUE.label} | +0.2000 (+0.2000 to +0.2000), 0 lost |"
    assert "%" not in line(lines, "seconds", READER.label)
    assert not any("T = 40" in one for one in lines)  # where nothing but BPTT is run


def test_equal_seconds_are_fewer_characters_for_the_slower():
    traces = [trace(BPTT, [3, 2.0, 1.9]), trace(READER, [2.5, 1.8, 1.7], seconds=1.5)]
    lines = shares(RECIPE, traces)
    assert line(lines, "characters", READER.label).endswith("+0.2000 |")
    assert line(lines, "seconds", READER.label).endswith("+0.1000 |")


@pytest.mark.parametrize("missing", [BPTT, TRUE])
def test_what_is_missing_leaves_no_figure(missing):
    known = [arm for arm in (BPTT, TRUE, READER) if arm is not missing]
    lines = shares(RECIPE, [trace(arm, [3, 2]) for arm in known])
    assert (lines == []) == (missing is BPTT)
    assert not any("%" in one for one in lines)
