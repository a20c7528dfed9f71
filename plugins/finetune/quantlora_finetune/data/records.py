"""Records: the rows of ``--data``, each a text, a prompt with its answer, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlora.errors import FinetuneError

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


def has_content(record: Record) -> bool:
    """Whether there is anything in it to learn."""
    match record:
        case Text(text):
            return bool(text.strip())
        case Exchange(_, completion):
            return bool(completion)
        case Chat(messages, start):
            return any(message["role"] == "assistant" for message in messages[start:])
