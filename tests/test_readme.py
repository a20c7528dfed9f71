"""The README is true: its examples run, and its table of backends is the registry's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import quantlora

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def backend_rows() -> dict[str, list[str]]:
    table = README.split("## Backends")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


def test_the_table_of_backends_is_the_registry() -> None:
    assert set(backend_rows()) == set(quantlora.registry().quantizers)


@pytest.mark.parametrize("backend", sorted(quantlora.registry().quantizers))
def test_the_table_says_who_can_quantize(backend: str) -> None:
    can_quantize = backend_rows()[backend][2].startswith("yes")
    assert can_quantize == quantlora.registry().quantizers[backend].can_quantize


def test_every_link_in_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing
