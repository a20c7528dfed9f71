"""`python -m tests.terminal_record [--write]`: the way from data to a server, on its page."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.terminal_record.page import PAGE, sections
from tests.tools.page_command import give, page_parser

if __name__ == "__main__":
    given = page_parser("tests.terminal_record", __doc__, PAGE).parse_args()
    with TemporaryDirectory() as folder:
        give("\n".join(sections(Path(folder))), PAGE, given.write)
