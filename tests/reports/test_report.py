"""The report's readings: who is measured where, and what the cells say."""

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_curves import coordinates, curves, values

from dnirnn.commands import reproduce
from dnirnn.reports import plots
from dnirnn.reports.curves import Point, reading
from dnirnn.reports.recipes import BPTT, DNI, RECIPES, Arm, Column, columns
from dnirnn.reports.report import draw, markdown, settings, text_of
from dnirnn.reports.tables import Cell, Table, Trace, costs, figure_of, limits_of, read_along

COPY, PTB = RECIPES["copy"]("quick"), RECIPES["ptb"]("quick")
some = curves().filter(len)
stops = st.sampled_from(["minutes", "updates", "symbols"])


def trace(curve, stopped="minutes", arm=BPTT, truncation=2) -> Trace:
    result = None if stopped is None else {"stopped": stopped}
    return Trace(Column(arm, truncation, "none"), None, curve, result)


@given(found=st.lists(some, min_size=1, max_size=4), stopped=stops, axis=coordinates, other=some)
def test_a_limit_is_reached_by_all_and_early_ends_do_not_move_it(found, stopped, axis, other):
    group = [trace(curve, stopped) for curve in found]
    limits, ends = limits_of(group, axis), [getattr(curve[-1], axis) for curve in found]
    ended_by = {"minutes": "seconds", "updates": "updates", "symbols": "data"}[stopped]
    assert limits == (min(ends), max(ends) if axis == ended_by else min(ends))
    for early in ("patience", None):
        assert limits_of([*group, trace(other, early)], axis) == limits


def test_the_budget_that_ended_all_is_equal_though_their_last_updates_overshot_it():
    """Each by a little of its own: their last evaluations count."""
    group = [trace([Point(5, 60.1, 5, 3)]), trace([Point(4, 60.3, 4, 7)], arm=DNI)]
    cells = read_along(COPY, group, "seconds", False)
    assert [(cell.limit, cell.values) for cell in cells] == [(60.1, [3]), (60.1, [7])]


@given(
    found=st.lists(st.tuples(some, st.sampled_from([2, 8])), min_size=1, max_size=5),
    axis=coordinates,
    lower=st.booleans(),
)
def test_cells_are_readings_at_one_limit_for_all_that_is_measured_together(found, axis, lower):
    traces = [trace(curve, "x", truncation=truncation) for curve, truncation in found]
    for recipe, groups in ((COPY, [{2}, {8}]), (PTB, [{2, 8}])):
        for cell in read_along(recipe, traces, axis, lower):
            (group,) = [group for group in groups if cell.column.truncation in group]
            shared = [t for t in traces if t.column.truncation in group]
            assert (cell.limit, cell.limit) == limits_of(shared, axis)
            own = [t.curve for t in traces if t.column.truncation == cell.column.truncation]
            readings = [reading(curve, axis, cell.limit, lower) for curve in own]
            assert cell.values == [value for value in readings if value is not None]


@given(found=st.lists(some, min_size=1, max_size=3), other=some)
def test_bptt_costs_what_it_spent_and_what_never_gets_there_is_infinite(found, other):
    traces = [*(trace(curve) for curve in found), trace(other, arm=DNI)]
    first, second = costs(COPY, traces, "data", False)
    known = [max(point.value for point in curve) for curve in found]
    assert first.limit == second.limit == median(known)
    best = max(point.value for point in other)
    assert (second.values == [math.inf]) == (best < first.limit)
    if len(found) == 1 and found[0][-1].seconds <= other[-1].seconds:
        assert first.values[0] <= found[0][-1].data


@given(own=values, other=values)
def test_a_cell_says_how_it_stands_to_the_baseline(own, other):
    cell = Cell(Column(DNI, 2, "none"), 1, [own], False)
    bptt = Cell(Column(BPTT, 2, "none"), 1, [other], False)
    table = Table("", "seconds", "none", figure_of(PTB, "bits"), [cell, bptt], False, True)
    assert text_of(cell, bptt, table) == f"{own:.4f}, {own - other:+.3f}"
    assert text_of(bptt, bptt, table) == f"{other:.4f}"


def test_a_cell_says_its_spread_its_ratio_and_that_a_run_failed():
    column = Column(DNI, 2, "none")
    table = Table("", "seconds", "none", figure_of(COPY, "solved"), [], True, True)
    bptt = Cell(Column(BPTT, 2, "none"), 1, [7.0, 8, 8], False)
    assert text_of(Cell(column, 1, [14, 16, 18], True), bptt, table) == "16 (14 to 18)†, 2.00 ×"
    assert text_of(Cell(column, 1, [16, math.inf], False), bptt, table) == "never (16 to never)"
    assert text_of(Cell(column, 1, [], True), bptt, table) == "-†"
    assert text_of(Cell(column, 1, [16], False), bptt._replace(values=[0]), table) == "16"


def test_settings_are_said_in_the_words_of_the_command_line():
    changes = dict(dense=True, context=("input", "target"), scale=0.5, estimator_hidden=("linear",))
    words = "--dense --context input target --scale 0.5 --estimator-hidden linear"
    assert settings(Arm("a", "a", changes)) == words
    assert settings(Arm("a", "a", {}, chunks=1)) == "(a chunk an update)"
    assert settings(Arm("a", "a", changes, chunks=4)) == f"{words} (4 chunks an update)"


def test_the_picture_has_a_row_for_what_is_measured_together(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "learning_curves", lambda rows, *rest: drawn.append((rows, rest)))
    curve = [Point(1, 2, 3, 4)]
    traces = [trace(curve, arm=arm, truncation=t) for t in (2, 8) for arm in (BPTT, DNI)]
    path = tmp_path / "curves.png"
    draw(COPY, traces, path, "notice (of it)")
    draw(PTB, traces, path, "notice")
    (rows, rest), (others, other_rest) = drawn
    assert [[curve.name for curve in row] for row in rows.values()] == [["BPTT", "DNI"]] * 2
    assert list(rows) == ["T = 2", "T = 8"]
    assert rest[:3] == (path, "longest length solved", "sequences") and rest[-1] is False
    (row,) = others.values()
    assert [(c.name, c.colour, c.style) for c in row] == [
        ("BPTT 2", "2", "--"), ("DNI 2", "2", "-"), ("BPTT 8", "8", "--"), ("DNI 8", "8", "-"),
    ]  # fmt: skip
    assert other_rest[2] == "characters" and other_rest[-1] is True


@pytest.mark.parametrize("table", reproduce.RECIPES)
def test_every_line_of_every_recipe_has_a_look_of_its_own(table, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "learning_curves", lambda rows, *rest: drawn.append(rows))
    recipe = reproduce.RECIPES[table]("cpu")
    traces = [Trace(one, None, [Point(1, 2, 3, 4)], None) for one in columns(recipe)]
    draw(recipe, traces, tmp_path / "curves.png", "notice")
    for row in drawn[0].values():
        assert len({(curve.colour, curve.style) for curve in row}) == len(row)


words = st.sampled_from(["", "a", "†×", "long one"])


@given(st.lists(st.lists(words, min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_markdown_table_is_aligned_and_whole(rows):
    lines = markdown(rows)
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) <= set("|- ")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [cells[0], *cells[2:]] == rows
