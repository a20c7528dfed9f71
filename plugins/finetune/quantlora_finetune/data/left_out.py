"""Rows that a training leaves out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from quantlora_finetune.data.records import (
    Chat,
    Exchange,
    Instruction,
    Labelled,
    Preference,
    Record,
    Task,
    Text,
)

#: Those that chat templates have something for.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def why_left_out(record: Record) -> str | None:
    """Why there is nothing in it to learn; None where there is."""
    match record:
        case Text(text):
            return None if text.strip() else "the text is empty"
        case Preference(chosen, rejected):
            return why_left_out(chosen) or why_left_out(rejected)
        case Labelled(answer, _):
            return why_left_out(answer)
        case Task(prompt, _):
            return None if prompt else "the prompt is empty"
        case Instruction(_, _, completion) | Exchange(_, completion):
            return None if completion.strip() else "the answer is empty"
        case Chat():
            return _why_chat(record)


def _why_chat(record: Chat) -> str | None:
    answers = [each for each in record.messages[record.start :] if each["role"] == "assistant"]
    if any(message["content"] or message.get("tool_calls") for message in answers):
        return None
    if answers:
        return "the assistant's messages are empty"
    roles = ", ".join(dict.fromkeys(str(message["role"]) for message in record.messages))
    return f"no message of the role assistant to learn (roles: {roles or 'none'})"


def unknown_roles(records: Iterable[Record]) -> Counter[str]:
    """Roles that most chat templates drop or refuse, with the number of conversations of each."""
    chats = (record for record in records if isinstance(record, Chat))
    roles = ({str(message["role"]) for message in chat.messages} for chat in chats)
    return Counter(role for found in roles for role in sorted(found) if role not in _ROLES)
