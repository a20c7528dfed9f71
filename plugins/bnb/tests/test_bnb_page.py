"""The PAGE's examples run, and its tables name what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from quantlora_bnb.settings import Settings4bit, Settings8bit

PAGE = (Path(__file__).parents[3] / "docs" / "bnb.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FORMATS = ("bitsandbytes_4bit", "bitsandbytes_4bit", "bitsandbytes_8bit")


def test_the_table_of_options_is_complete() -> None:
    table = re.findall(r"^\| `(\w+)` \| (\d)-bit \|", PAGE, re.MULTILINE)
    fields = [(field.name, "4") for field in dataclasses.fields(Settings4bit)]
    assert table == fields + [(field.name, "8") for field in dataclasses.fields(Settings8bit)]
