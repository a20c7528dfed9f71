"""Every member of `Quantizer` that a plugin may override is told of on the page for plugins."""

from __future__ import annotations

import re

import pytest

from quantlora import Quantizer
from tests.docs.pages import ROOT

#: What follows from the others.
DERIVED = {
    "availability_error",
    "can_hold_affine",
    "can_quantize",
    "can_quantize_experts",
    "imported",
    "require",
}
ANNOTATED = {name for kind in Quantizer.__mro__ for name in vars(kind).get("__annotations__", {})}
MEMBERS = {name for name in (*dir(Quantizer), *ANNOTATED) if not name.startswith("_")} - DERIVED
PAGE = (ROOT / "docs" / "plugins.md").read_text()
SECTION = PAGE.partition("## What a quantizer can say")[2].partition("\n## ")[0]
NAMED = {
    name
    for row in re.findall(r"^\| (`.*?) \|", SECTION, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row)
}


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_a_member_has_a_row(member: str) -> None:
    assert member in NAMED


def test_no_row_is_about_a_member_that_is_gone() -> None:
    assert NAMED <= MEMBERS
