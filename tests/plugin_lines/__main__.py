"""`python -m tests.plugin_lines [--write]`: the plugins' lines of code, on the page."""

from __future__ import annotations

from tests.plugin_lines.lines import PAGE, page, part
from tests.tools.page_command import give, page_parser

given = page_parser("tests.plugin_lines", __doc__, PAGE).parse_args()
give(page() if given.write else part(), PAGE, given.write)
