"""The way of docs/from-data-to-server.md is gone again, and the whole text compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.terminal_record.page import PAGE, sections
from tests.tools.versions import IS_TRANSFORMERS_5

pytest.importorskip("gguf")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the page says what is printed on a CPU")
@pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="the page is written with Transformers 5")
def test_every_command_prints_what_the_page_says(tmp_path: Path) -> None:
    assert "\n".join(sections(tmp_path)) == PAGE.read_text("utf-8")
