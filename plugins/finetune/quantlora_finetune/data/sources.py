"""From ``--data`` to records: a file, a folder of files, or a data set on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantlora.errors import FinetuneError
from quantlora.requirements import Requirement
from quantlora_finetune.data import demo_text
from quantlora_finetune.data.records import Record, Text, has_content, record_of

_DATASETS = Requirement("datasets>=3", fix="pip install datasets")


def read_records(data: str | None, split: str) -> list[Record]:
    """The records that ``--data`` names, at least one.

    Raises:
        FinetuneError: there is no such file or data set, it is empty, or its form is not known.
    """
    records = list(_read(data, split))
    if not any(has_content(record) for record in records):
        raise FinetuneError(f"{data}: there is nothing in it to train on.")
    return records


def _read(data: str | None, split: str) -> Iterable[Record]:
    if data is None:
        return [Text(demo_text.demo_text())]
    path = Path(data).expanduser()
    if path.is_dir():
        return _through_datasets(data, str(path), None, split)
    if path.is_file():
        return _from_jsonl(path) if path.suffix in (".jsonl", ".json") else [Text(_text(path))]
    if path.suffix in (".txt", ".jsonl", ".json", ".md") or not _may_be_id(data):
        raise FinetuneError(f"there is no file {path} (looked in {Path.cwd()}).")
    name, _, config = data.partition(":")
    return _through_datasets(data, name, config or None, split)


def _may_be_id(data: str) -> bool:
    return data.count("/") <= 1 and not data.startswith((".", "/", "~"))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise FinetuneError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _from_jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FinetuneError(f"{place}: not a JSON object: {error}") from error
            yield record_of(row, place)


def _through_datasets(data: str, name: str, config: str | None, split: str) -> Iterator[Record]:
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
    for number, row in enumerate(rows):
        yield record_of(row, f"{data}, row {number}")
