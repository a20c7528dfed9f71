"""Reading numbers and texts from bytes that may end, or lie, anywhere."""

from __future__ import annotations

import struct
from collections.abc import Callable
from mmap import mmap

from quantlora.errors import ConfigError

#: Metadata of a fixed size, by the number of their type: letters of `struct`.
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
#: Arrays in arrays in arrays: no file has them.
_DEEPEST = 4


class Cursor:
    """A place in the bytes of a file, which moves with each reading.

    Raises `ConfigError` with the file's name where the file ends before what is read.
    """

    def __init__(self, data: mmap, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def number(self, letter: str, what: str) -> int:
        """One little-endian number; ``letter`` is `struct`'s."""
        size = struct.calcsize(f"<{letter}")
        self._require(size, what)
        value: int = struct.unpack_from(f"<{letter}", self.data, self.at)[0]
        self.at += size
        return value

    def text(self, what: str) -> str:
        """A text with its length before it."""
        length = self.number("Q", what)
        self._require(length, what)
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", errors="replace")

    def value(self, what: str) -> int | str | None:
        """A value of the metadata with its type before it; None for arrays, which are skipped."""
        kind = self.number("I", what)
        if kind == _ARRAY:
            self._skip_array(what, 0)
            return None
        return self.text(what) if kind == _TEXT else self.number(self._letter(kind, what), what)

    def _skip_array(self, what: str, depth: int) -> None:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind in _NUMBERS:
            size = count * struct.calcsize(f"<{_NUMBERS[kind]}")
            self._require(size, what)
            self.at += size
            return
        self._require(8 * count, what)  # each has its length before it
        self._skip_each(self._skipper(kind, what, depth), count)

    def _skipper(self, kind: int, what: str, depth: int) -> Callable[[], None]:
        if kind == _TEXT:
            return lambda: self._skip_text(what)
        if kind != _ARRAY or depth >= _DEEPEST:
            raise self.error(f"{what} is an array of type {kind}")
        return lambda: self._skip_array(what, depth + 1)

    def _skip_each(self, skip: Callable[[], None], count: int) -> None:
        for _ in range(count):
            skip()

    def _skip_text(self, what: str) -> None:
        length = self.number("Q", what)
        self._require(length, what)
        self.at += length

    def _letter(self, kind: int, what: str) -> str:
        if kind not in _NUMBERS:
            raise self.error(f"{what} has a value of type {kind}")
        return _NUMBERS[kind]

    def _require(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise self.error(f"it ends within {what}")

    def error(self, reason: str) -> ConfigError:
        """The error to raise for ``reason``."""
        return ConfigError(f"{self.name} is no GGUF file, or damaged: {reason}. Copy it again.")
