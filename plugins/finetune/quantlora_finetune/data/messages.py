"""The messages of a conversation, in the one form that chat templates of texts understand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantlora.errors import FinetuneError

Message = Mapping[str, Any]


def turns(messages: list[Any], location: str) -> tuple[Message, ...]:
    """Messages with their content as one string; an error names the ``location`` of a wrong one."""
    return tuple(_turn(message, location) for message in messages)


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """``messages`` after the message ``system``, where they have none of their own."""
    has_system = bool(messages) and messages[0]["role"] in ("system", "developer")
    before = [] if system is None or has_system else [{"role": "system", "content": system}]
    return [*before, *messages]


def _turn(message: Any, location: str) -> Message:
    if not (isinstance(message, Mapping) and {"role", "content"} <= set(message)):
        calls = isinstance(message, Mapping) and "role" in message and message.get("tool_calls")
        if not calls:
            raise FinetuneError(f'{location}: every message needs "role" and "content".')
    if not isinstance(message["role"], str):
        raise FinetuneError(
            f'{location}: a "role" is {type(message["role"]).__name__}, not a text.'
        )
    # A field that only other rows have is null in this one, where they come from a table.
    own = {key: value for key, value in message.items() if value is not None}
    calls = [_call(call, location) for call in own.get("tool_calls") or ()]
    content = _content(own.get("content", "" if calls else None), location)
    return {**own, "content": content, **({"tool_calls": calls} if calls else {})}


def _content(content: Any, location: str) -> str:
    """A text, or parts that are all texts, as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        found = "null" if content is None else type(content).__name__
        raise FinetuneError(
            f'{location}: a message\'s "content" is {found}; only one with "tool_calls" may be '
            "empty."
        )
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    kinds = [part.get("type", "text") if isinstance(part, Mapping) else "text" for part in content]
    if wrong := [str(kind) for kind in kinds if kind != "text"]:
        raise FinetuneError(f"{location}: a message has a part of type {wrong[0]!r}: text only.")
    plain = [text for text in texts if isinstance(text, str)]
    if len(plain) < len(texts):
        raise FinetuneError(f'{location}: a part of a message has no "text".')
    return "".join(plain)


def _call(call: Any, location: str) -> Any:
    """A call with its arguments as an object: templates write them, some APIs give a string."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not (isinstance(function, Mapping) and isinstance(function.get("name"), str)):
        raise FinetuneError(f"{location}: a tool call has no function with a name.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return call
    whole = {**function, "arguments": arguments}
    return {**call, "function": whole} if "function" in call else whole


def call_names(message: Message) -> list[str]:
    """The functions that a message calls."""
    return [call.get("function", call)["name"] for call in message.get("tool_calls", ())]


def tools_of(row: Mapping[str, Any], location: str) -> tuple[Any, ...]:
    """The row's ``tools``: a list, or one as JSON text."""
    given = row.get("tools") or []
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise FinetuneError(f'{location}: its "tools" are no JSON: {error}') from error
    if not isinstance(found, list):
        raise FinetuneError(f'{location}: its "tools" are {type(found).__name__}, not a list.')
    return tuple(found)
