"""``python -m quantlora``: the command line, also for ``torchrun -m quantlora``."""

from __future__ import annotations

import signal
import sys
from types import FrameType


class RememberedInterrupt:
    """Python's own handler of Ctrl-C, which also remembers that it was pressed."""

    pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.default_int_handler(number, frame)


def main() -> None:
    """Run the command; Ctrl-C ends it with exit code 130, also while libraries are loaded.

    Some of them turn the interrupt into an error of their own, so it is remembered here.
    """
    handler = RememberedInterrupt()
    signal.signal(signal.SIGINT, handler)
    try:
        from quantlora.cli import app

        app(prog_name="quantlora")
    except SystemExit as end:
        if not (handler.pressed and end.code):
            raise
        sys.exit(130)
    except BaseException:
        if not handler.pressed:
            raise
        print("interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
