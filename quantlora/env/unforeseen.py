"""What a command says of an error that nobody has foreseen, and of the user's Ctrl-C."""

from __future__ import annotations

import os
import signal

from quantlora.discovery.entry_points import text_of

#: Set to 1 to see where an error that nobody has foreseen comes from.
TRACEBACK = "QUANTLORA_TRACEBACK"


def wants_traceback() -> bool:
    return os.environ.get(TRACEBACK) == "1"


def unforeseen(error: BaseException) -> str:
    """``error`` in one line, with what to do."""
    text = " ".join(text_of(error).split())
    return (
        f"{type(error).__name__}: {text}. Nobody has foreseen this: please report it, with "
        f"what {TRACEBACK}=1 shows."
    )


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind ``error``: libraries that load make errors of their own of it.

    Some swallow it and fail later, so the command's own handler remembers that it was pressed.
    """
    if getattr(signal.getsignal(signal.SIGINT), "pressed", False):
        return True
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
