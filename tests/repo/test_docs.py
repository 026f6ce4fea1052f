"""The documents: links between pages lead somewhere, and the drawings are what their script draws."""
from __future__ import annotations

import importlib.util
import re

import pytest

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")


def pages(repository):
    return [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]


def test_links_between_pages_lead_somewhere(repository):
    broken = [f"{page.name}: {link}" for page in pages(repository)
              for link, _ in LINK.findall(page.read_text(encoding="utf-8"))
              if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


def test_a_broken_link_would_be_found():
    assert LINK.findall("see [this](gone.md#part), ![that](images/x.png)") == [("gone.md", "#part"),
                                                                              ("images/x.png", "")]


@pytest.mark.parametrize("name", ["path-of-a-weight", "path-of-a-click", "trellis-window", "what-a-file-holds"])
def test_drawings_are_those_of_their_script(repository, name):
    spec = importlib.util.spec_from_file_location("drawings", repository / "benchmarks" / "drawings.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    assert (repository / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8") == drawings.page(
        *drawings.drawings()[name])
