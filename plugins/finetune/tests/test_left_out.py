"""Rows that a training leaves out, with the reason and the number of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quantlora_finetune.data.left_out import unknown_roles, why_left_out
from quantlora_finetune.data.records import Chat, Exchange
from quantlora_finetune.data.sources import read_counted

from quantlora.errors import FinetuneError


def chat(*turns: tuple[str, str]) -> Chat:
    return Chat(tuple({"role": role, "content": text} for role, text in turns))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(("human", "Hi."), ("gpt", "Hello.")), "to learn (roles: human, gpt)"),
        (chat(("user", "Hi."), ("assistant", "")), "the assistant's messages are empty"),
        (chat(), "(roles: none)"),
        (Exchange("Hi.", " "), "the answer is empty"),
    ],
)
def test_a_row_without_anything_to_learn_has_a_reason(row: Chat | Exchange, reason: str) -> None:
    assert reason in str(why_left_out(row))


def test_a_role_that_templates_lack_is_counted_by_conversation() -> None:
    odd = chat(("critic", "No."), ("critic", "Yes."), ("assistant", "Well."))
    assert unknown_roles([odd, odd, chat(("user", "Hi."))]) == {"critic": 2}


def test_reasons_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": answer} for answer in ("b", "", " ")]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": ""}])))
    records, reasons = read_counted(str(tmp_path / "d.jsonl"), "train")
    assert records == [Exchange("a", "b")]
    assert reasons == {"the answer is empty": 2, "the text is empty": 1}


def test_data_of_nothing_else_are_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": ""}\n{"prompt": "a", "completion": ""}\n')
    reasons = r"Left out: the text is empty \(1\); the answer is empty \(1\)\."
    with pytest.raises(FinetuneError, match=reasons):
        read_counted(str(tmp_path / "d.jsonl"), "train")
