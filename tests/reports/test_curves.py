"""Curves read at equal data, seconds and updates."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from dnirnn.reports.curves import Point, points, reading, spent

values = st.floats(-10, 10)
coordinates = st.sampled_from(["data", "seconds", "updates"])


@st.composite
def curves(draw) -> list[Point]:
    """Evaluations as a run makes them: further along each time."""
    steps = draw(st.lists(st.tuples(*[st.integers(1, 9)] * 3, values), max_size=8))
    found, at = [], (0, 0, 0)
    for *further, value in steps:
        at = tuple(a + b for a, b in zip(at, further))
        found.append(Point(*at, value))
    return found


@given(curve=curves(), axis=coordinates, lower=st.booleans(), one=values, other=values)
def test_a_reading_never_gets_worse(curve, axis, lower, one, other):
    early, late = sorted([3 * one, 3 * other])
    first, second = (reading(curve, axis, limit, lower) for limit in (early, late))
    if first is not None:
        assert second <= first if lower else second >= first


@given(curve=curves(), axis=coordinates, lower=st.booleans(), goal=values)
def test_what_was_spent_buys_the_value_and_nothing_less_does(curve, axis, lower, goal):
    cost = spent(curve, axis, goal, lower)
    whole = reading(curve, axis, math.inf, lower)
    reached = whole is not None and (whole <= goal if lower else whole >= goal)
    assert (cost is not None) == reached
    if reached:
        value = reading(curve, axis, cost, lower)
        assert value <= goal if lower else value >= goal
        before = reading(curve, axis, cost - 1, lower)
        assert before is None or (before > goal if lower else before < goal)


@given(curve=curves(), axis=coordinates, limit=st.floats(0, 99))
def test_lower_is_better_turns_the_values_round(curve, axis, limit):
    turned = [point._replace(value=-point.value) for point in curve]
    value, other = reading(curve, axis, limit, True), reading(turned, axis, limit, False)
    assert value == (None if other is None else -other)


def test_a_log_is_read_by_symbols_or_by_sequences(tmp_path):
    row = dict(kind="valid", update=5, symbols=40, seconds=2.5, epochs=3.0, solved=7)
    rows = [{**row, "kind": "train"}, row]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert points(tmp_path / "log.jsonl", "solved") == [Point(40, 2.5, 5, 7)]
    assert points(tmp_path / "log.jsonl", "solved", 16) == [Point(48.0, 2.5, 5, 7)]
