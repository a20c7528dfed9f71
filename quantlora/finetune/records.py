"""From ``--data`` to records: a file or a data set on the hub, read and checked.

A record is a text, or an example with a prompt and the answer to be learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora.finetune import demo_text
from quantlora.requirements import Requirement

_DATASETS = Requirement("datasets>=3", fix="pip install datasets")
_FORMS = '"text", "prompt" and "completion", or "messages"'


@dataclass(frozen=True)
class Text:
    """A piece of running text."""

    text: str


@dataclass(frozen=True)
class Exchange:
    """A prompt and its answer."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """A conversation; the assistant's turns from ``start`` on are to be learned."""

    messages: tuple[Mapping[str, Any], ...]
    start: int = 0


Record = Text | Exchange | Chat


def read_records(data: str | None, split: str) -> list[Record]:
    """The records that ``--data`` names, at least one.

    Raises:
        FinetuneError: there is no such file or data set, it is empty, or its form is not known.
    """
    records = list(_read(data, split))
    if not any(_has_content(record) for record in records):
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


def record_of(row: Any, place: str) -> Record:
    """One row as a record; an error names its ``place`` and what it holds instead."""
    if isinstance(row, Mapping):
        match row:
            case {"messages": list() as messages}:
                return Chat(_turns(messages, place))
            case {"prompt": list() as prompt, "completion": list() as completion}:
                return Chat(_turns([*prompt, *completion], place), start=len(prompt))
            case {"prompt": str() as prompt, "completion": str() as completion}:
                return Exchange(prompt, completion)
            case {"text": str() as text}:
                return Text(text)
    found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
    raise FinetuneError(f"{place}: expected an object with {_FORMS}, found {found or 'no field'}.")


def _turns(messages: list[Any], place: str) -> tuple[Mapping[str, Any], ...]:
    for message in messages:
        if not (isinstance(message, Mapping) and {"role", "content"} <= set(message)):
            raise FinetuneError(f'{place}: every message needs "role" and "content".')
    return tuple(messages)


def _has_content(record: Record) -> bool:
    match record:
        case Text(text):
            return bool(text.strip())
        case Exchange(_, completion):
            return bool(completion)
        case Chat(messages, start):
            return any(message["role"] == "assistant" for message in messages[start:])
