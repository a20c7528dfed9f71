"""Rows as other programs have them: read as what they mean."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import pytest
from quantlora_finetune.data.examples import TrainingTokenizer, examples_of
from quantlora_finetune.data.forms import column_map
from quantlora_finetune.data.overview import histogram, length_for, overview
from quantlora_finetune.data.reading_progress import reading_progress
from quantlora_finetune.data.records import Chat, Exchange, Instruction, Text, record_of
from quantlora_finetune.data.sources import read_records
from quantlora_finetune.options.data import DataOptions
from rich.console import Console

from quantlora.errors import ConfigError, FinetuneError
from quantlora.testing.models import tiny_tokenizer

SAID = [("system", "s"), ("human", "q"), ("gpt", "a")]
SHAREGPT = [{"from": speaker, "value": value} for speaker, value in SAID]
CHAT = Chat(
    tuple(
        {"role": role, "content": content}
        for role, content in (("system", "s"), ("user", "q"), ("assistant", "a"))
    )
)
ROWS = {
    "sharegpt": ({"conversations": SHAREGPT, "id": 3}, CHAT),
    "openai under sharegpt's name": ({"conversations": list(CHAT.messages)}, CHAT),
    "alpaca": ({"instruction": "i", "input": "n", "output": "o"}, Instruction("i", "n", "o")),
    "alpaca, no input": ({"instruction": "i", "output": "o"}, Instruction("i", "", "o")),
    "null input": ({"instruction": "i", "input": None, "output": "o"}, Instruction("i", "", "o")),
    "alpaca with a system message and earlier rounds": (
        {
            "instruction": "i",
            "input": "n",
            "output": "o",
            "system": "s",
            "history": [["h", "r"]],
        },
        Chat(
            tuple(
                {"role": role, "content": content}
                for role, content in (
                    ("system", "s"),
                    ("user", "h"),
                    ("assistant", "r"),
                    ("user", "i\n\nn"),
                    ("assistant", "o"),
                )
            )
        ),
    ),
    "sharegpt's system message in a column": ({"conversations": SHAREGPT[1:], "system": "s"}, CHAT),
    "question": ({"question": "q", "answer": "a", "id": 1}, Instruction("q", "", "a")),
    "response": ({"prompt": "q", "response": "a"}, Instruction("q", "", "a")),
    "text beside others": ({"text": "t", "instruction": "i", "output": "o"}, Text("t")),
    "ours beside others": ({"prompt": "p", "completion": "c", "answer": "a"}, Exchange("p", "c")),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_read_as_what_it_means(name):
    row, record = ROWS[name]
    assert record_of(row, "here") == record


def test_a_function_call_of_sharegpts_is_a_tool_call():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    found = record_of({"conversations": [SHAREGPT[1], call]}, "here")
    assert isinstance(found, Chat)
    assert found.messages[1]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]


def test_an_instruction_is_a_conversation_where_the_model_has_a_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    wanted = {"role": "user", "content": "i\n\nn"}, {"role": "assistant", "content": "o"}
    tokens = TrainingTokenizer(tokenizer)
    first, second = (
        examples_of([record], tokens, 99) for record in (Instruction("i", "n", "o"), Chat(wanted))
    )
    assert first == second


def test_an_instruction_is_alpacas_prompt_where_it_has_none():
    record = Instruction("i", "n", "o")
    assert record.prompt == "### Instruction:\ni\n\n### Input:\nn\n\n### Response:\n"
    tokens = TrainingTokenizer(tiny_tokenizer())
    assert examples_of([record], tokens, 99) == examples_of(
        [Exchange(record.prompt, "o")], tokens, 99
    )


def test_columns_of_any_table_are_named(tmp_path):
    (tmp_path / "faq.csv").write_text("id,frage,antwort\n1,wie,so\n")
    columns = column_map("prompt=frage, completion = antwort")
    assert read_records(str(tmp_path / "faq.csv"), "train", columns) == [Exchange("wie", "so")]


@pytest.mark.parametrize("given", ["prompt", "prompt=", "=x", "a=b,c"])
def test_names_of_columns_in_another_form_are_refused(given):
    with pytest.raises(ConfigError, match="--map is ours=theirs"):
        column_map(given)


@pytest.mark.parametrize("given", ["prompt=a,prompt=b", "propmt=a"])
def test_a_name_that_is_given_twice_or_is_none_of_ours_is_refused(given):
    with pytest.raises(ConfigError, match=r"two columns for 'prompt'|'propmt' is no column"):
        column_map(given)


def test_data_that_give_no_example_are_no_training(run, tiny, tmp_path):
    (tmp_path / "d.txt").write_text("short")
    short = run("data", tmp_path / "d.txt", "--model", tiny)
    beyond = run("data", tmp_path / "d.txt", "--model", tiny, "--length", "300")
    assert (short.exit_code, beyond.exit_code) == (1, 1)
    assert "gives no example of 128 tokens" in " ".join(short.stderr.split())
    assert "reads at most 256 tokens" in " ".join(beyond.stderr.split())


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    (tmp_path / "faq.csv").write_text("frage,antwort\nwie,so\n")
    with pytest.raises(FinetuneError, match="the column 'fragen'; there are frage, antwort"):
        read_records(str(tmp_path / "faq.csv"), "train", column_map("text=fragen"))


@pytest.mark.parametrize("split", [None, "train"])
def test_what_save_to_disk_has_written_is_read(tmp_path, split):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    (rows if split is None else datasets.DatasetDict({split: rows})).save_to_disk(tmp_path / "d")
    assert read_records(str(tmp_path / "d"), "train") == [Text("a"), Text("b")]
    if split:
        with pytest.raises(FinetuneError, match="no split 'test', only train"):
            read_records(str(tmp_path / "d"), "test")


def test_the_overview_counts_what_a_training_would_see(tmp_path):
    rows = [{"prompt": "q" * n, "completion": "a" * 9} for n in (1, 20, 60)] + [{"text": " "}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = DataOptions(str(tmp_path / "d.jsonl"), length=24)
    found = overview(options, TrainingTokenizer(tiny_tokenizer()))
    assert (found.forms, found.empty) == ({"prompts with a completion": 3}, 1)
    assert (len(found.examples), found.cut, found.left_out) == (2, 1, 1)
    assert found.lengths == [12, 31, 71]  # BOS, prompt, answer, EOS


def test_a_histogram_has_every_length_once_and_no_gap():
    lengths = [3, 4, 8, 90, 91, 130]
    bars = histogram(lengths)
    assert sum(count for _, count in bars) == len(lengths)
    assert len(bars) <= 13
    ends = [tuple(map(int, name.split(" to "))) for name, _ in bars]
    assert all(end + 1 == start for (_, end), (start, _) in pairwise(ends))


def test_the_length_that_is_proposed_holds_nearly_all():
    assert length_for([10] * 95 + [500] * 5, share=0.9) == 16
    assert length_for([1]) == 8


def test_the_command_shows_forms_lengths_examples_and_what_to_type_next(run, tiny, tmp_path):
    rows = [{"question": "what?" * n, "answer": "that"} for n in range(1, 30)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    output = run("data", tmp_path / "d.jsonl", "--model", tiny, "--length", "64").output
    assert "29 instructions with an answer; 0 left out" in output
    assert "are cut off at their end" in output
    assert "95 % of them fit into --length" in output
    assert output.count("learned") >= 4
    assert "Next: quantlora finetune" in output


def test_tokens_are_counted_while_data_are_read_on_a_terminal():
    tokenizer = TrainingTokenizer(tiny_tokenizer())
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with reading_progress(console, "book.txt", tokenizer):
        for _ in range(3):
            tokenizer.encode("a" * 1000)
    assert "reading book.txt: 3,000 tokens" in file.getvalue()
    assert tokenizer.progress is None
