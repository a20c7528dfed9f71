"""The one place where bitsandbytes is imported, late: it takes seconds and prints."""

from __future__ import annotations

from typing import Any


def library() -> Any:
    import bitsandbytes

    return bitsandbytes
