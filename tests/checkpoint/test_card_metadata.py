"""Metadata of a card that somebody has written: what they lack is added, the rest stays."""

from __future__ import annotations

import pytest
import yaml

from quantlora.checkpoint.card_metadata import with_metadata

BASE = "owner/base"
TAGS = ["lora", "quantlora", f"base_model:adapter:{BASE}"]
ODD = "license: mit # by me\nver: 1.10\ntime: 12:30:00\nempty: ~\nyes: no\n2024: a\n"
CARDS = {
    "none": "# Mine\n",
    "odd": f"---\n{ODD}---\n# Mine\n",
    "empty": "---\n{}\n---\n# Mine\n",
    "block": "---\ntags: # some\n  - poems # mine\nver: 1.10\n---\n# Mine\n",
    "flow": "---\ntags: [poems]\n---\n# Mine\n",
    "one": "---\ntags: poems\n---\n# Mine\n",
    "null": "---\ntags:\nlibrary_name: ~\n---\n# Mine\n",
}


@pytest.mark.parametrize("line", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_what_is_lacking_is_added_and_every_other_line_stays(card, mark, line) -> None:
    text = with_metadata(mark + card.replace("\n", line), BASE)
    assert text.startswith(f"{mark}---{line}")
    found = yaml.safe_load(text.removeprefix(mark).split(f"---{line}")[1])
    poems = ["poems"] if "poems" in card else []
    assert found["tags"] == [*poems, *TAGS]
    assert (found["library_name"], found["base_model"]) == ("peft", BASE)
    kept = [one for one in card.splitlines() if "tags" not in one and one[-1:] not in "~}"]
    assert all(one in text.split(line) for one in kept)
    assert text.count("\n") == text.count(line)
    assert with_metadata(text, BASE) == text


def test_metadata_that_are_no_mapping_are_left_to_the_caller() -> None:
    with pytest.raises(ValueError, match="no mapping"):
        with_metadata("---\n- a\n---\n", BASE)
