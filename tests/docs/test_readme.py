"""The README's python blocks run as they stand, and the commands that it names exist.

Blocks run in order in one namespace, as a reader would paste them, in an empty directory. A block
that is not to be run has the line <!-- not run: WHY --> right above it.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(
    r"(<!-- not run: (?P<why>[^>]+) -->\n)?```python\n(?P<code>.*?)^```$", re.M | re.S
)

pytestmark = pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = README.read_text(), {"__name__": "readme"}
    blocks = [match for match in BLOCK.finditer(text) if not match["why"]]
    assert blocks, "the README has no python block to run"
    for match in blocks:
        line = text.count("\n", 0, match.start("code"))
        # So many empty lines above it that a traceback names the README's own line.
        exec(compile("\n" * line + match["code"], str(README), "exec"), namespace)


def test_every_fence_is_closed_and_every_python_block_found():
    text = README.read_text()
    assert len(re.findall(r"^```", text, re.M)) % 2 == 0
    assert len(BLOCK.findall(text)) == len(re.findall(r"^```py", text, re.M))


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)\b", README.read_text(), re.M))
    assert {"demo", "test"} <= named <= targets


def test_files_that_it_links_to_exist():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", README.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
