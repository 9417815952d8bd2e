"""The python blocks of every page in docs/ run as they stand, in order, as in the README."""

import re
from pathlib import Path

import pytest
from test_readme import BLOCK

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": page.stem}
    for match in BLOCK.finditer(text):
        if not match["why"]:
            line = text.count("\n", 0, match.start("code"))
            exec(compile("\n" * line + match["code"], str(page), "exec"), namespace)
    assert len(BLOCK.findall(text)) == len(re.findall(r"^```py", text, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_it_links_to_exist(page):
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [link for link in links if not (DOCS / link).exists()] == []
