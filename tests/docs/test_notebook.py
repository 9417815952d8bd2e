"""The notebook's cells run in order, as in a kernel, in a folder of their own."""

import json

import matplotlib
from strategies import EXAMPLES

NOTEBOOK = json.loads((EXAMPLES / "first_steps.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_its_cells_run(tmp_path, monkeypatch, capsys):
    """With a few updates in the place of its seconds."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    assert sum("MINUTES = 0.25" in cell for cell in CELLS) == 1
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        cell = cell.replace("MINUTES = 0.25", "MINUTES = 0.002")
        exec(compile(cell, f"cell {number}", "exec"), namespace)
    lines = namespace["axes"].get_lines()
    assert [line.get_label() for line in lines] == ["plain truncation", "synthetic gradients"]
    assert len(namespace["run"].sample(20)) == 20
    first, last = namespace["losses"][0], namespace["losses"][-1]
    assert f"{first:.2f} -> {last:.2f}" in capsys.readouterr().out and last < first


def test_it_is_kept_without_outputs_and_is_of_the_format():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 4)
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert {"cell_type", "metadata", "source"} <= cell.keys()
