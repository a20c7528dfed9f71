"""Records: the rows of ``--data``, each a text, a prompt with its answer, or a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.forms import known_form, renamed
from quantlora_finetune.data.messages import tools_of, turns
from quantlora_finetune.data.preference_forms import is_labelled, is_pair, pair_rows

_FORMS = (
    '"text", "prompt" and "completion", "messages", "conversations", "instruction" and "output", '
    'or "question" and "answer" (--map names other columns)'
)


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


@dataclass(frozen=True)
class Instruction:
    """A task and its answer: a conversation of two turns where the model has a chat template."""

    instruction: str
    given: str
    answer: str

    @property
    def asked(self) -> str:
        """As a user's message."""
        return f"{self.instruction}\n\n{self.given}" if self.given else self.instruction

    @property
    def prompt(self) -> str:
        """As Alpaca writes it, for models without a chat template."""
        given = f"### Input:\n{self.given}\n\n" if self.given else ""
        return f"### Instruction:\n{self.instruction}\n\n{given}### Response:\n"


@dataclass(frozen=True)
class Preference:
    """Two answers to the same prompt, the first the better one."""

    chosen: Exchange | Chat | Instruction
    rejected: Exchange | Chat | Instruction


@dataclass(frozen=True)
class Labelled:
    """An answer that is good, or is not."""

    answer: Exchange | Chat | Instruction
    is_good: bool


@dataclass(frozen=True)
class Task:
    """A prompt that the model answers itself; ``columns`` are for whoever rewards the answer."""

    prompt: str | tuple[Mapping[str, Any], ...]
    columns: Mapping[str, Any]


#: What there is one answer in, to be learned.
Answered = Exchange | Chat | Instruction
Record = Text | Exchange | Chat | Instruction | Preference | Labelled | Task
#: A row and where it is, as a record.
ReadRow = Callable[[Any, str], Record]
_NO_MAP: Mapping[str, str] = {}


def record_of(
    row: Any, location: str, columns: Mapping[str, str] = _NO_MAP, tasks: bool = False
) -> Record:
    """One row as a record; an error names its ``location`` and what it holds instead.

    Args:
        columns: our name of a column for the row's own, see `column_map`.
        tasks: rows are prompts to be answered; see `Task`.
    """
    _check_text(row, location)
    row = renamed(row, columns, location)
    if isinstance(row, Mapping):
        if tasks:
            return _task(row, location)
        if is_pair(row):
            chosen, rejected = (_answered(each, location) for each in pair_rows(row, location))
            return Preference(chosen, rejected)
        if is_labelled(row):
            fields = {name: value for name, value in row.items() if name != "label"}
            return Labelled(_answered(fields, location), row["label"])
        match known_form(row, location):
            case {"messages": list() as messages}:
                return Chat(turns(messages, location), tools=tools_of(row, location))
            case {"prompt": list() as prompt, "completion": list() as completion}:
                given = turns([*prompt, *completion], location)
                return Chat(given, len(prompt), tools_of(row, location))
            case {"prompt": str() as prompt, "completion": str() as completion}:
                return Exchange(prompt, completion)
            case {"text": str() as text}:
                return Text(text)
            case {
                "instruction": str() as asked,
                "input": str() as more,
                "output": str() as answer,
            }:
                return Instruction(asked, more, answer)
    found = _columns(row) if isinstance(row, Mapping) else type(row).__name__
    raise FinetuneError(
        f"{location}: expected an object with {_FORMS}, found {found or 'no field'}."
    )


def _answered(row: Mapping[str, Any], location: str) -> Answered:
    found = record_of(row, location)
    assert isinstance(found, Answered)
    return found


def _task(row: Mapping[str, Any], location: str) -> Task:
    """Its prompt, or its question as a user's message; all other columns beside it."""
    match row:
        case {"prompt": str() as text}:
            return Task(text, row)
        case {"prompt": list() as talk} | {"messages": list() as talk}:
            return Task(_unanswered(turns(talk, location)), row)
        case {"question": str() as question} | {"query": str() as question}:
            return Task(({"role": "user", "content": question},), row)
        case {"instruction": str() as wanted}:
            record = Instruction(wanted, str(row.get("input") or ""), "")
            return Task(({"role": "user", "content": record.asked},), row)
    raise FinetuneError(
        f'{location}: --trainer grpo wants a "prompt", "messages", "question" or "instruction" in '
        f"each row, found {', '.join(map(str, row)) or 'no field'} (--map names other columns)."
    )


def _unanswered(messages: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


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
