"""The prompts of ``quantlora generate``: typed, or from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.messages import Message, turns
from quantlora_finetune.data.text_file import text_of

#: A text, or a conversation.
Prompt = str | Sequence[Message]
_LINES = (".jsonl", ".ndjson")


def prompts_in(file: Path) -> list[Prompt]:
    """One prompt a row of a .jsonl file (``prompt`` or ``messages``), or a line of any other.

    Raises:
        FinetuneError: it cannot be read, holds no prompt, or a row is of another form.
    """
    if not file.is_file():
        raise FinetuneError(f"there is no file {file} (looked in {Path.cwd()}).")
    found = list(_prompts(file))
    if not found:
        raise FinetuneError(f"{file}: there is no prompt in it.")
    return found


def _prompts(file: Path) -> Iterator[Prompt]:
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        if line.strip():
            location = f"{file}, line {number}"
            yield _row(line, location) if file.suffix.lower() in _LINES else line


def _row(line: str, location: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FinetuneError(f"{location}: not a JSON object: {error}") from error
    match row:
        case str() as text:
            return text
        case {"messages": list() as messages} | {"prompt": list() as messages}:
            return _unanswered(turns(messages, location), location)
        case {"prompt": str() as text}:
            return text
    found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise FinetuneError(f'{location}: expected "prompt" or "messages", found {found}.')


def _unanswered(messages: Sequence[Message], location: str) -> Sequence[Message]:
    """Without the answer that a conversation of training data ends with."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise FinetuneError(f"{location}: there is no message in it to reply to.")
    return messages[:end]
