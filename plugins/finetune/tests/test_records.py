"""Reading ``--data``: files, lines and the hub."""

from __future__ import annotations

import json

import pytest
from quantlora_finetune.data.demo_text import demo_text
from quantlora_finetune.data.records import Chat, Exchange, Text
from quantlora_finetune.data.sources import read_records

from quantlora.errors import FinetuneError

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "t", "id": 3}, Text("t")),
        ({"prompt": "p", "completion": "c"}, Exchange("p", "c")),
        ({"messages": MESSAGES}, Chat(tuple(MESSAGES))),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, Chat(tuple(MESSAGES), start=1)),
    ],
)
def test_the_forms_of_a_line(tmp_path, row, record):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n\n" + json.dumps(row))
    assert read_records(str(file), "train") == [record, record]


def test_a_text_file_is_one_text_whatever_its_ending(tmp_path):
    file = tmp_path / "notes.rst"
    file.write_text("grüß Gott\n", "utf-8")
    assert read_records(str(file), "train") == [Text("grüß Gott\n")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "fine"}\nnot json', r"data.jsonl, line 2: not a JSON object"),
        ('{"question": 1, "answer": 2}', r'line 1: expected .*"text".* found question, answer'),
        ("[1]", r"line 1: expected an object"),
        ('{"messages": [{"role": "user"}]}', r'line 1: every message needs "role" and "content"'),
        ('{"messages": [{"role": "user", "content": "q"}]}', r"nothing in it to train on"),
        ("", r"nothing in it to train on"),
        ('{"text": "  "}', r"nothing in it to train on"),
    ],
)
def test_lines_that_will_not_do_are_named(tmp_path, content, message):
    file = tmp_path / "data.jsonl"
    file.write_text(content)
    with pytest.raises(FinetuneError, match=message):
        read_records(str(file), "train")


@pytest.mark.parametrize("name", ["missing.txt", "./missing", "a/b/missing", "/missing"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FinetuneError, match="there is no file"):
        read_records(name, "train")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "data.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FinetuneError, match="cannot be read as UTF-8"):
        read_records(str(file), "train")


def test_a_folder_of_data_files_is_read_through_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "p", "completion": "c"}])
    rows.to_parquet(tmp_path / "train.parquet")
    assert read_records(str(tmp_path), "train") == [Exchange("p", "c")]
    with pytest.raises(FinetuneError, match=r"cannot be loaded \(split 'test'\)"):
        read_records(str(tmp_path), "test")


def test_a_data_set_that_cannot_be_fetched_is_named():
    pytest.importorskip("datasets")
    with pytest.raises(FinetuneError, match="as a data set it cannot be loaded"):
        read_records("no-such-org/no-such-data:en", "train")


def test_the_demonstrations_text_repeats_no_paragraph():
    paragraphs = demo_text().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000
    assert sum(map(len, paragraphs)) > 200_000
