"""`python -m tests.peft_suite [files ...] [-k EXPRESSION] [--write]`."""

from __future__ import annotations

from tests.peft_suite.page import PAGE, page
from tests.peft_suite.run import FILES, SOURCE, run_suite, tests_folder
from tests.tools.page_command import give, page_parser


def main() -> None:
    parser = page_parser("tests.peft_suite", __doc__, PAGE)
    parser.add_argument("files", nargs="*", help="names of PEFT's test files; default: LoRA's")
    parser.add_argument("-k", default="", dest="choose", help="pytest's -k")
    given = parser.parse_args()
    folder = tests_folder()
    if folder is None:
        parser.error(f"{SOURCE} must name the folder of PEFT's tests (in its source archive).")
    text = page(run_suite(folder, tuple(given.files) or FILES, given.choose))
    give(text, PAGE, given.write)


if __name__ == "__main__":
    main()
