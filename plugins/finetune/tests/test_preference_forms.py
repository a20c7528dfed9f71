"""Pairs, labelled answers and tasks: recognised in the forms that people have them in."""

from __future__ import annotations

import json

import pytest
from quantlora_finetune.data.comparisons import compared_rows
from quantlora_finetune.data.dataset import load_dataset
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.data.records import (
    Chat,
    Exchange,
    Instruction,
    Labelled,
    Preference,
    Task,
    record_of,
)
from quantlora_finetune.options.choices import TrainerName
from quantlora_finetune.options.data import DataOptions
from quantlora_finetune.options.finetune_options import FinetuneOptions

from quantlora.errors import FinetuneError
from quantlora.testing.models import tiny_tokenizer

USER = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("a", "b"))
TALKS = Preference(Chat((USER, GOOD), 1), Chat((USER, BAD), 1))
ROWS = {
    "texts": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        Preference(Exchange("q", "a"), Exchange("q", "b")),
    ),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, TALKS),
    "a text and messages": ({"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, TALKS),
    "the prompt repeated": (
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, TALKS
    ),
    "no prompt": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, TALKS),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        TALKS,
    ),
    "alpaca": (
        {"instruction": "q", "input": "n", "chosen": "a", "rejected": "b"},
        Preference(Instruction("q", "n", "a"), Instruction("q", "n", "b")),
    ),
    "a question with a system message": (
        {"system": "s", "question": "q", "chosen": "a", "rejected": "b"},
        Preference(
            *(Chat(({"role": "system", "content": "s"}, USER, each), 2) for each in (GOOD, BAD))
        ),
    ),
    "labelled": (
        {"prompt": "q", "completion": "a", "label": False}, Labelled(Exchange("q", "a"), False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_read_as_what_it_compares(name):
    row, record = ROWS[name]
    assert record_of(row, "here") == record


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, 'need a "prompt", "question" or "instruction"'),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, '"chosen" is int'),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, '"chosen" is empty'),
        ({"chosen": [GOOD], "rejected": [BAD]}, "do not begin alike"),
    ],
)
def test_a_pair_of_another_form_is_refused(row, message):
    with pytest.raises(FinetuneError, match=message):
        record_of(row, "here")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "answer": 1}, "q"),
        ({"question": "q"}, (USER,)),
        ({"messages": [USER, GOOD]}, (USER,)),
        ({"instruction": "q", "output": "a"}, (USER,)),
    ],
)
def test_a_task_is_a_prompt_with_the_rows_columns(row, prompt):
    assert record_of(row, "here", tasks=True) == Task(prompt, row)


def rows_of(records, trainer, length=64, **options):
    tokenizer = TrainingTokenizer(tiny_tokenizer(), DataOptions(template="vicuna", **options))
    return compared_rows(records, tokenizer, trainer, length), tokenizer.tokenizer.decode


def test_both_answers_of_a_pair_are_behind_the_same_tokens():
    [row], decode = rows_of([TALKS], TrainerName.DPO, system="s")
    prompt = decode(row.chosen.input_ids[: row.prompt])
    assert prompt == "<s>s USER: q ASSISTANT:"
    answers = [decode(each.input_ids[row.prompt :]) for each in (row.chosen, row.rejected)]
    assert answers == [" a</s>", " b</s>"]


def test_a_pair_whose_prompt_fills_the_length_is_left_out():
    assert rows_of([TALKS], TrainerName.ORPO, length=8)[0] == []


def test_kto_takes_a_pair_for_two_judged_answers():
    rows, _ = rows_of([TALKS, ROWS["labelled"][1]], TrainerName.KTO)
    assert [row.is_good for row in rows] == [True, False, False]


def test_answers_that_are_not_to_be_learned_are_not_learned_by_oversight(tmp_path):
    for name, message in (("texts", "--map completion=chosen"), ("labelled", "--trainer kto")):
        (tmp_path / "d.jsonl").write_text(f"{json.dumps(ROWS[name][0])}\n" * 4)
        options = FinetuneOptions(data=str(tmp_path / "d.jsonl"))
        with pytest.raises(FinetuneError, match=message):
            load_dataset(options, TrainingTokenizer(tiny_tokenizer()))


@pytest.mark.parametrize("trainer", ["dpo", "kto"])
def test_data_without_a_comparison_are_refused_by_a_trainer_that_compares(tmp_path, trainer):
    (tmp_path / "d.jsonl").write_text('{"prompt": "q", "completion": "a"}\n' * 4)
    options = FinetuneOptions(data=str(tmp_path / "d.jsonl"), trainer=trainer)
    with pytest.raises(FinetuneError, match=f"--trainer {trainer}.*the data needs"):
        load_dataset(options, TrainingTokenizer(tiny_tokenizer()))


def test_the_data_command_shows_pairs(run, tiny, tmp_path):
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(ROWS['texts'][0])}\n" * 4)
    output = run("data", tmp_path / "d.jsonl", "--model", tiny).output
    assert "Rows: 4 pairs of a chosen and a rejected answer; 0 left out" in output
    assert "--trainer dpo" in output
