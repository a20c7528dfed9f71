"""The page of names has every public name, and no other."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT
from tests.test_architecture import public_names


def test_every_public_name_is_on_the_page_of_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert set(re.findall(r"^::: .*\.(\w+)$", page, re.MULTILINE)) == public_names()
