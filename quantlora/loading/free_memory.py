"""Memory that was freed is given back to the system.

While a model is packed, large float tensors come and go between small packed ones that stay. The
allocator of glibc keeps what lies between them, several times what is packed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Return free pages; does nothing where the C library has no such function."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
