"""`python -m tests.peft_suite [files ...] [-k EXPRESSION] [--write]`."""

from __future__ import annotations

import argparse

from tests.peft_suite.page import PAGE, page
from tests.peft_suite.run import FILES, SOURCE, run_suite, tests_folder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peft_suite", description=__doc__)
    parser.add_argument("files", nargs="*", help="names of PEFT's test files; default: LoRA's")
    parser.add_argument("-k", default="", dest="choose", help="pytest's -k")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    folder = tests_folder()
    if folder is None:
        parser.error(f"{SOURCE} must name the folder of PEFT's tests (in its source archive).")
    text = page(run_suite(folder, tuple(given.files) or FILES, given.choose))
    if given.write:
        PAGE.write_text(text, "utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
