"""What reports look like in a notebook: every row, nothing that a dark page could hide."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from torch import nn

import quantlora
from quantlora.html_tables import Bar, html_table
from quantlora.merging.merge_report import LayerMerge, MergeReport
from quantlora.testing.models import tiny_llama


def reports() -> dict[str, Any]:
    model = quantlora.wrap(tiny_llama(), r=2, backend="normalfloat", init_lora_weights=False)
    lossy = LayerMerge("layer.<0>", "normalfloat", 1.0, 0.75)
    merged = MergeReport([lossy, *quantlora.merge(model).layers])
    return {
        "explain": quantlora.explain(nn.Linear(2, 2), r=2, target_modules=["nothing"]),
        "merge": merged,
        "memory": quantlora.memory_of(model),
        "env": quantlora.env_report(),
    }


REPORTS = ("explain", "merge", "memory", "env")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: report._repr_html_() for name, report in reports().items()}


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not the last one opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", REPORTS)
def test_every_tag_is_closed(pages: dict[str, str], name: str) -> None:
    parser = Balanced()
    parser.feed(pages[name])
    assert parser.open == []


@pytest.mark.parametrize("name", REPORTS)
def test_text_has_the_colour_of_the_page_light_or_dark(pages: dict[str, str], name: str) -> None:
    assert set(re.findall(r"(?<![-\w])color:([^;\"]+)", pages[name])) == {"inherit"}
    backgrounds = set(re.findall(r"background:([^;\"]+)", pages[name]))
    assert backgrounds <= {"transparent", "rgba(90,120,220,.75)"}


def test_problems_stand_below_the_table(pages: dict[str, str]) -> None:
    assert "wrap would stop: target_modules" in pages["explain"].partition("</table>")[2]


def test_every_merged_layer_has_its_row(pages: dict[str, str]) -> None:
    assert pages["merge"].count("<tr>") == 1 + 1 + 14
    assert "layer.&lt;0&gt;" in pages["merge"]
    assert "merging lost most of the update" in pages["merge"]


def test_text_is_escaped_and_bars_stay_in_their_cell() -> None:
    page = html_table(("<a>",), [("x < y\nz",), (Bar(float("nan"), "nan"),), (Bar(7.0, "7"),)])
    assert "&lt;a&gt;" in page
    assert "x &lt; y<br>z" in page
    assert page.count("width:100px") == 2
