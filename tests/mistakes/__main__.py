"""`python -m tests.mistakes [--write]`: the mistakes and what is printed, on their page."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.mistakes.page import PAGE, sections
from tests.tools.page_command import give, page_parser

if __name__ == "__main__":
    given = page_parser("tests.mistakes", __doc__, PAGE).parse_args()
    with TemporaryDirectory() as folder:
        give("\n".join(sections(Path(folder))), PAGE, given.write)
