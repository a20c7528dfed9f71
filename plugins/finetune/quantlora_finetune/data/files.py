"""One data file, read as what its ending says; an ending that says nothing is refused."""

from __future__ import annotations

import csv
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora.requirements import Requirement
from quantlora_finetune.data.records import ReadRow, Record, Text, record_of
from quantlora_finetune.data.text_file import text_of

_PARQUET = Requirement("pyarrow>=15", fix="pip install pyarrow")
_TEXT = (
    "", ".txt", ".text", ".md", ".markdown", ".rst", ".log", ".tex", ".org", ".adoc",
    ".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".php", ".py", ".r", ".rb",
    ".rs", ".sh", ".sql", ".ts",
)  # fmt: skip


def read_file(path: Path, read: ReadRow = record_of) -> Iterator[Record]:
    """The records of ``path``, rows by ``read``.

    Raises:
        FinetuneError: it cannot be read, or is not of the form that its ending says.
    """
    suffix = path.suffix.lower()
    if suffix in _TEXT:
        yield Text(text_of(path))
        return
    if suffix not in _ROWS:
        raise FinetuneError(
            f"{path}: the ending {path.suffix!r} does not say what is in it. Data are read from "
            f"{', '.join(_ROWS)}, and as running text from .txt, .md and the like: convert or "
            f"rename it."
        )
    for location, row in _ROWS[suffix](path):
        yield read(row, location)


def is_rows(path: Path) -> bool:
    """Whether the file is read row by row, not as running text."""
    return path.suffix.lower() in _ROWS


#: A row, and where it is.
Row = tuple[str, Any]


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            location = f"{path}, line {number}"
            try:
                yield location, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FinetuneError(f"{location}: not a JSON object: {error}") from error


def _json(path: Path) -> Iterator[Row]:
    """A list of rows, one row, or a row on each line."""
    try:
        whole = json.loads(text_of(path))
    except (ValueError, RecursionError):
        yield from _json_lines(path)
        return
    rows = whole if isinstance(whole, list) else [whole]
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _separated(path: Path) -> Iterator[Row]:
    """A table whose first line names the columns; every value stays the text that it is."""
    csv.field_size_limit(sys.maxsize)  # a text may be long
    text = text_of(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text))
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise FinetuneError(f"{path}: two columns have the same name ({', '.join(names)}).")
        for row in reader:
            location = f"{path}, line {reader.line_num}"
            if row and len(row) != len(names):
                raise FinetuneError(
                    f"{location}: {len(row)} values for {len(names)} columns; put a value that "
                    f"holds the separator or a line end into double quotes."
                )
            if row:
                yield location, dict(zip((name.strip() for name in names), row, strict=True))
    except csv.Error as error:
        raise FinetuneError(f"{path}, line {reader.line_num}: {error}") from error


def _delimiter(path: Path, text: str) -> str:
    """Tab for .tsv; for .csv the comma, or what else separates the names in the first line."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = text.partition("\n")[0]
    return max(",;\t", key=lambda mark: (first.count(mark), mark == ","))


def _parquet(path: Path) -> Iterator[Row]:
    _PARQUET.check().require()
    try:
        rows = importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()
    except Exception as error:  # whatever a damaged file makes it raise
        raise FinetuneError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    for number, row in enumerate(rows, start=1):
        # A column that some rows lack is null in them.
        yield f"{path}, row {number}", {k: v for k, v in row.items() if v is not None}


_ROWS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
