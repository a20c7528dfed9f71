"""Sizes and dtypes for people."""

from __future__ import annotations


def format_size(count: float) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def dtype_name(dtype: object) -> str:
    """``bfloat16``, not ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")
