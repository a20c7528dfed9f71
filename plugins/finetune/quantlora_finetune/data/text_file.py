"""The text of a file: UTF-8, or UTF-16 and UTF-32 where a byte order mark says so. No guesses."""

from __future__ import annotations

import codecs
from pathlib import Path

from quantlora.errors import FinetuneError

#: Those of UTF-32 first: the one of UTF-16 is how its little-endian form begins.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def text_of(path: Path) -> str:
    """What is written in ``path``, its line ends as ``\\n``.

    Raises:
        FinetuneError: it cannot be read, is in another encoding, or is no text.
    """
    try:
        data = path.read_bytes()
        encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
        text = data.decode(encoding)
    except (UnicodeDecodeError, OSError) as error:
        raise FinetuneError(
            f"{path} cannot be read as UTF-8 text: {error}. Convert it first, for example by "
            f"iconv -f latin1 -t utf-8."
        ) from error
    if "\0" in text:
        raise FinetuneError(f"{path} is no text: it has zero bytes. Give text, not a binary file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")
