"""Records: the rows of ``--data``, each a text, a prompt with its answer, or a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.messages import tools_of, turns

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
    """A conversation; the assistant's turns from ``start`` on are to be learned.

    ``tools`` are those it may call, for the model's chat template.
    """

    messages: tuple[Mapping[str, Any], ...]
    start: int = 0
    tools: tuple[Any, ...] = ()


Record = Text | Exchange | Chat


def record_of(row: Any, location: str) -> Record:
    """One row as a record; an error names its ``location`` and what it holds instead."""
    _check_text(row, location)
    if isinstance(row, Mapping):
        match row:
            case {"messages": list() as messages}:
                return Chat(turns(messages, location), tools=tools_of(row, location))
            case {"prompt": list() as prompt, "completion": list() as completion}:
                given = turns([*prompt, *completion], location)
                return Chat(given, len(prompt), tools_of(row, location))
            case {"prompt": str() as prompt, "completion": str() as completion}:
                return Exchange(prompt, completion)
            case {"text": str() as text}:
                return Text(text)
    found = _columns(row) if isinstance(row, Mapping) else type(row).__name__
    raise FinetuneError(
        f"{location}: expected an object with {_FORMS}, found {found or 'no field'}."
    )


def _check_text(value: Any, location: str) -> None:
    """Refuse halves of a surrogate pair, which JSON can spell and no text has."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise FinetuneError(
                f"{location}: \\u{ord(value[error.start]):04x} is half of a surrogate pair, and no "
                f"character: write the character itself, or leave it out."
            ) from error
    elif isinstance(value, (Mapping, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            _check_text(part, location)


def _columns(row: Mapping[str, Any]) -> str:
    """The names, and of those that should be text what they hold instead."""
    forms = ("text", "prompt", "completion", "messages")
    return ", ".join(
        f"{name} ({type(value).__name__})" if name in forms and not isinstance(value, str) else name
        for name, value in ((str(key), value) for key, value in row.items())
    )


def has_content(record: Record) -> bool:
    """Whether there is anything in it to learn."""
    match record:
        case Text(text):
            return bool(text.strip())
        case Exchange(_, completion):
            return bool(completion.strip())
        case Chat(messages, start, _):
            own = (message for message in messages[start:] if message["role"] == "assistant")
            return any(message["content"] or message.get("tool_calls") for message in own)
