"""A command that prints data prints nothing else, whatever plugins and libraries say meanwhile."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def strays_to_stderr() -> Iterator[None]:
    """Within the block what is printed goes to stderr, also by C libraries and other processes."""
    with _file_to_stderr(), redirect_stdout(sys.stderr):
        yield


@contextmanager
def _file_to_stderr() -> Iterator[None]:
    try:
        sys.stdout.flush()
        out, kept = sys.stdout.fileno(), os.dup(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # no file: a test, a notebook
        yield
        return
    try:
        os.dup2(2, out)
        yield
    finally:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).fflush(None)  # what C has printed and still holds
        os.dup2(kept, out)
        os.close(kept)
