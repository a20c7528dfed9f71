"""`python -m tests.operations_table [--write] [--smoke]`: the suites' results on the page."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.operations_table.page import PAGE, page, part
from tests.operations_table.recorder import TEST, run_suites
from tests.tools.page_command import give, page_parser

#: A few operations of every suite; enough to see that the command works.
SMOKE = f"{TEST} and (float32-forward or requantize)"


def main() -> int:
    parser = page_parser("tests.operations_table", __doc__, PAGE)
    parser.add_argument("--smoke", action="store_true", help="few operations; writes nothing")
    given = parser.parse_args()
    recorder = run_suites(SMOKE if given.smoke else TEST)
    failed = [cell for cell in recorder.cells if cell.answer == "fails"]
    text = page(part(recorder))
    if given.write and (given.smoke or failed):
        parser.error("a page is written of a whole run in which nothing fails.")
    give(text, PAGE, given.write)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
