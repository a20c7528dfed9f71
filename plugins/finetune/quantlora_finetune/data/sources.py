"""From ``--data`` to records: a file, a folder of files, or a data set on the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora.requirements import Requirement
from quantlora_finetune.data import demo_text
from quantlora_finetune.data.files import read_file
from quantlora_finetune.data.folder import data_files, is_described, is_saved, unread_files
from quantlora_finetune.data.left_out import why_left_out
from quantlora_finetune.data.records import ReadRow, Record, Text, record_of

_NO_MAP: Mapping[str, str] = {}
_DATASETS = Requirement("datasets>=3", fix="pip install datasets")
#: What is meant as a file, though a hub id may have a dot too.
_ENDINGS = (".csv", ".json", ".jsonl", ".md", ".ndjson", ".parquet", ".tsv", ".txt")


def read_records(
    data: str | None, split: str, columns: Mapping[str, str] = _NO_MAP, tasks: bool = False
) -> list[Record]:
    """The records that ``--data`` names and that have something to learn, at least one.

    Args:
        columns: our name of a column for the data's own, see `column_map`.
        tasks: rows are prompts to be answered; see `Task`.

    Raises:
        FinetuneError: there is no such file or data set, it is empty, or its form is not known.
    """
    return read_counted(data, split, columns, tasks)[0]


def read_counted(
    data: str | None, split: str, columns: Mapping[str, str] = _NO_MAP, tasks: bool = False
) -> tuple[list[Record], Counter[str]]:
    """The same, and the number of rows that are left out, by the reason."""
    rows = list(_read(data, split, partial(record_of, columns=columns, tasks=tasks)))
    reasons = [why_left_out(record) for record in rows]
    left_out = Counter(reason for reason in reasons if reason is not None)
    filled = [record for record, reason in zip(rows, reasons, strict=True) if reason is None]
    if not filled:
        why = "; ".join(f"{reason} ({count})" for reason, count in left_out.items())
        more = f" Left out: {why}." if why else ""
        raise FinetuneError(f"{data}: there is nothing in it to train on.{more}")
    return filled, left_out


def not_read(data: str | None, split: str) -> list[str]:
    """Files in the folder ``data`` that are not read: its card, and those of other splits."""
    path = None if data is None else Path(data).expanduser()
    if path is None or not path.is_dir() or is_described(path) or is_saved(path):
        return []
    return unread_files(path, split)


def _read(data: str | None, split: str, read: ReadRow) -> Iterable[Record]:
    if data is None:
        return [Text(demo_text.demo_text())]
    path = Path(data).expanduser()
    if path.is_dir() and is_saved(path):
        return _rows(data, _saved(path, split), read)
    if path.is_dir() and is_described(path):
        return _through_datasets(data, str(path), None, split, read)
    if path.is_dir():
        return (record for file in data_files(path, split) for record in read_file(file, read))
    if path.is_file():
        return read_file(path, read)
    if path.suffix in _ENDINGS or not _may_be_id(data):
        raise FinetuneError(f"there is no file {path} (looked in {Path.cwd()}).")
    name, _, config = data.partition(":")
    return _through_datasets(data, name, config or None, split, read)


def _may_be_id(data: str) -> bool:
    return data.count("/") <= 1 and not data.startswith((".", "/", "~"))


def _through_datasets(
    data: str, name: str, config: str | None, split: str, read: ReadRow
) -> Iterator[Record]:
    """The rows of a folder of data files, or of a data set on the hub."""
    _DATASETS.check().require()
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split)
    except Exception as error:  # whatever the hub, the network or a file come up with
        raise FinetuneError(
            f"{data}: there is no such file, and as a data set it cannot be loaded (split "
            f"{split!r}): {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        ) from error
    return _rows(data, rows, read)


def _rows(data: str, rows: Iterable[Any], read: ReadRow) -> Iterator[Record]:
    for number, row in enumerate(rows):
        yield read(row, f"{data}, row {number}")


def _saved(folder: Path, split: str) -> Iterable[Any]:
    """The rows of a folder that ``save_to_disk`` of `datasets` has written."""
    _DATASETS.check().require()
    from datasets import DatasetDict, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # whatever a damaged file makes it raise
        raise FinetuneError(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, DatasetDict):
        whole: Iterable[Any] = found
        return whole
    if split not in found:
        raise FinetuneError(
            f"{folder} has no split {split!r}, only {', '.join(found)}: name another --split."
        )
    rows: Iterable[Any] = found[split]
    return rows
