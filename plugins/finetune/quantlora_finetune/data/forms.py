"""Rows as other programs have them, as the forms of `records` have them.

ShareGPT's ``conversations``, Alpaca's ``instruction``, ``input`` and ``output``, and pairs such as
``question`` and ``answer``; ``--map`` names the columns of any other table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quantlora.errors import ConfigError, FinetuneError

Row = Mapping[str, Any]

#: Who speaks, in ShareGPT's words and ours.
_SPEAKERS = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "model": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
#: Columns of a question and its answer, in the order in which they are looked for.
_PAIRS = (
    ("question", "answer"), ("query", "response"), ("prompt", "response"), ("input", "output"),
)  # fmt: skip
#: Our names of columns, those that ``--map`` takes.
COLUMNS = (
    "text", "prompt", "completion", "messages", "tools", "conversations", "instruction", "input",
    "output", "question", "answer", "query", "response", "system", "chosen", "rejected", "label",
)  # fmt: skip


def column_map(given: str | None) -> dict[str, str]:
    """``"prompt=question,completion=answer"`` as our column for each of theirs.

    Raises:
        ConfigError: it is of another form.
    """
    pairs = [part.partition("=") for part in (given or "").split(",") if part.strip()]
    if any(not (ours.strip() and theirs.strip()) for ours, _, theirs in pairs):
        raise ConfigError(f"--map is ours=theirs, like prompt=question,completion=answer: {given}.")
    names = [ours.strip() for ours, _, _ in pairs]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ConfigError(f"--map: {unknown[0]!r} is no column of ours: {', '.join(COLUMNS)}.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--map names two columns for {twice[0]!r}: name one.")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def renamed(row: Any, columns: Mapping[str, str], location: str) -> Any:
    """``row`` with its columns under the names that ``columns`` gives them."""
    if not columns or not isinstance(row, Mapping):
        return row
    if missing := [theirs for theirs in columns.values() if theirs not in row]:
        there = ", ".join(map(str, row))
        raise FinetuneError(
            f"{location}: --map names the column {missing[0]!r}; there are {there}."
        )
    taken = set(columns.values())
    rest = {name: value for name, value in row.items() if name not in taken}
    return rest | {ours: row[theirs] for ours, theirs in columns.items()}


def known_form(row: Row, location: str) -> Row:
    """``row`` in one of our forms where it is in another program's; else as it is."""
    match row:
        case {"text": str()} | {"prompt": _, "completion": _}:
            return row
        case {"messages": list() as said} | {"conversations": list() as said}:
            messages = [sharegpt_message(turn, location) for turn in said]
            return {**row, "messages": _after_system(row, messages)}
        case {"instruction": str() as instruction, "output": str() as output}:
            return _instruction(row, instruction, output, location)
    for question, answer in _PAIRS:
        match (row.get(question), row.get(answer)):
            case (str() as asked, str() as answered):
                return {"instruction": asked, "input": "", "output": answered}
    return row


def _instruction(row: Row, instruction: str, output: str, location: str) -> Row:
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise FinetuneError(f'{location}: its "input" is {type(given).__name__}, not a text.')
    if not (row.get("system") or row.get("history")):
        return {"instruction": instruction, "input": given, "output": output}
    asked = f"{instruction}\n\n{given}" if given else instruction
    rounds = [*_history(row, location), (asked, output)]
    said = [
        {"role": role, "content": text}
        for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)
    ]  # fmt: skip
    return {"messages": _after_system(row, said)}


def _history(row: Row, location: str) -> list[tuple[str, str]]:
    """Alpaca's earlier rounds, each a question and its answer; learned as the last one is."""
    rounds = row.get("history") or []
    for pair in rounds if isinstance(rounds, list) else [rounds]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_text, pair))):
            raise FinetuneError(f'{location}: its "history" is no list of [question, answer].')
    return [(asked, answered) for asked, answered in rounds]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _after_system(row: Row, messages: list[Any]) -> list[Any]:
    """``messages`` after the row's own system message, a column beside them."""
    system = row.get("system")
    if not (isinstance(system, str) and system.strip()):
        return messages
    first = messages[0] if messages else None
    has_system = isinstance(first, Mapping) and first.get("role") == "system"
    return messages if has_system else [{"role": "system", "content": system}, *messages]


def sharegpt_message(turn: Any, location: str) -> Any:
    """A turn of ShareGPT's; one that is a message already stays as it is."""
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    speaker, value = turn["from"], turn.get("value")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": [{"function": _call(value, location)}]}
    if speaker not in _SPEAKERS:
        known = ", ".join([*_SPEAKERS, "function_call"])
        raise FinetuneError(f"{location}: who is {speaker!r}? Known are {known}.")
    return {"role": _SPEAKERS[speaker], "content": value}


def _call(value: Any, location: str) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{location}: a function_call is no JSON: {error}") from error
