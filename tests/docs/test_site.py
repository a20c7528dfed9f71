"""What the site is made of: all pages, and drawings of what the sources say."""

from __future__ import annotations

import html
import re

import pytest

from tests.docs.pages import ROOT

CONFIG = (ROOT / ".mkdocs.yml").read_text()
MADE = {"index.md", "changelog.md", "contributing.md", "security.md", "tutorial.md"}
SOURCES = {
    f"{page.stem}-{number}": source
    for page in (ROOT / "docs").glob("*.md")
    for number, source in enumerate(re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.S), 1)
}


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"([\w-]+\.md)$", CONFIG.split("\nnav:")[1], re.MULTILINE))
    assert listed == MADE | {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("name", SOURCES)
def test_a_drawing_says_what_its_source_says(name: str) -> None:
    """After a change of the source: ``python docs/_site/draw.py`` (its docstring has the rest)."""
    drawing = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text()
    drawn = {
        *re.findall(r"[\w]+", html.unescape(re.sub(r"<style>.*?</style>", "", drawing, flags=re.S)))
    }
    labels = re.findall(r'"([^"]*)"', SOURCES[name])
    words = {word for label in labels for word in re.findall(r"\w+", label.replace("<br>", " "))}
    assert not words - drawn


def test_nothing_is_fetched_when_the_site_is_read() -> None:
    assert "font: false" in CONFIG
    assert not re.findall(r"https?://", CONFIG)
