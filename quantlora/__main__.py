"""``python -m quantlora``: the command line, also for ``torchrun -m quantlora``."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command; Ctrl-C ends it with exit code 130, also while libraries are loaded.

    Some of them turn the interrupt into an error of their own, so it is remembered here.
    """
    pressed: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        from quantlora.cli import app

        app(prog_name="quantlora")
    except SystemExit as end:
        if not (pressed and end.code):
            raise
        sys.exit(130)
    except BaseException:
        if not pressed:
            raise
        print("interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
