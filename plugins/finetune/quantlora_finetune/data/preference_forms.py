"""Rows that compare answers: a chosen and a rejected one, or one that is good or not.

As TRL, LLaMA-Factory, axolotl and the hub have them: a prompt that is a text, messages, ShareGPT's
turns, a question or an instruction; answers that are texts, a message, or messages, with the prompt
before them where no column has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantlora.errors import FinetuneError
from quantlora_finetune.data.forms import sharegpt_message

Row = Mapping[str, Any]

#: Columns of what was asked, in the order in which they are looked for.
_ASKED = ("question", "query", "instruction", "input")
_ANSWERS = ("chosen", "rejected")


def is_pair(row: Row) -> bool:
    """Whether it has a chosen and a rejected answer."""
    return set(_ANSWERS) <= set(row) and "completion" not in row


def is_labelled(row: Row) -> bool:
    """Whether it says of its answer whether it is a good one."""
    return isinstance(row.get("label"), bool) and "prompt" in row and "completion" in row


def pair_rows(row: Row, location: str) -> tuple[Row, Row]:
    """The two rows, each with one of the answers, in the forms of `records`.

    Raises:
        FinetuneError: the answers are of another form, or there is no prompt.
    """
    chosen, rejected = (_answer(row[name], location, name) for name in _ANSWERS)
    if "messages" in row or "conversations" in row or isinstance(row.get("prompt"), list):
        prompt = row.get("prompt") or row.get("messages") or row.get("conversations") or []
        return _talk(prompt, chosen, location), _talk(prompt, rejected, location)
    if isinstance(row.get("prompt"), str):
        return _written(row["prompt"], chosen), _written(row["prompt"], rejected)
    asked = next((row[name] for name in _ASKED if isinstance(row.get(name), str)), None)
    if asked is not None:
        system = row.get("system")
        return _asked(row, asked, system, chosen), _asked(row, asked, system, rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _without_prompt(chosen, rejected, location)
    raise FinetuneError(
        f'{location}: a chosen and a rejected answer need a "prompt", "question" or "instruction" '
        f"beside them (--map names other columns), or have to be whole conversations."
    )


def _answer(value: Any, location: str, name: str) -> str | list[Any]:
    if isinstance(value, Mapping):
        return [sharegpt_message(value, location)]
    if isinstance(value, list) and value:
        return [sharegpt_message(turn, location) for turn in value]
    if isinstance(value, str):
        return value
    found = "empty" if value == [] else type(value).__name__
    raise FinetuneError(f'{location}: its "{name}" is {found}, not a text and no messages.')


def _talk(prompt: Sequence[Any], answer: str | list[Any], location: str) -> Row:
    before = [sharegpt_message(turn, location) for turn in prompt]
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if len(answer) > len(before) and answer[: len(before)] == before:  # it repeats the prompt
        answer = answer[len(before) :]
    return {"prompt": before, "completion": answer}


def _written(prompt: str, answer: str | list[Any]) -> Row:
    """A text is followed by a text; messages answer it as a user's."""
    if isinstance(answer, str):
        return {"prompt": prompt, "completion": answer}
    user = {"role": "user", "content": prompt}
    begins = answer[0].get("role") if isinstance(answer[0], Mapping) else None
    return {"prompt": [user], "completion": answer[1:] if begins == "user" else answer}


def _asked(row: Row, asked: str, system: Any, answer: str | list[Any]) -> Row:
    """Of a question without a system message, what a model without a template can take too."""
    more = row.get("input") if "instruction" in row else None
    given = more if isinstance(more, str) else ""
    if isinstance(answer, str) and not system:
        return {"instruction": asked, "input": given, "output": answer}
    said = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    said.append({"role": "user", "content": f"{asked}\n\n{given}" if given else asked})
    last = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return {"prompt": said, "completion": last}


def _without_prompt(chosen: list[Any], rejected: list[Any], location: str) -> tuple[Row, Row]:
    """Two conversations: what they share is the prompt."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    least = min(len(chosen), len(rejected))
    start = next((i for i, (a, b) in pairs if a != b), least)
    if start in (0, least):
        raise FinetuneError(
            f"{location}: its chosen and rejected conversations do not begin alike and end with "
            f"different answers."
        )
    return (
        {"prompt": chosen[:start], "completion": chosen[start:]},
        {"prompt": rejected[:start], "completion": rejected[start:]},
    )
