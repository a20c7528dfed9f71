"""docs/adapter-files.md names the files there are."""

from __future__ import annotations

from pathlib import Path

from quantlora.checkpoint import location
from quantlora.checkpoint.model_card import CARD

PAGE = (Path(__file__).parents[2] / "docs" / "adapter-files.md").read_text()


def test_it_names_every_file():
    assert all(
        f"`{name}`" in PAGE for name in (location.CONFIG, location.WEIGHTS, location.SIDE, CARD)
    )
