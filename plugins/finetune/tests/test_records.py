"""Reading ``--data``: files, lines and the hub."""

from __future__ import annotations

import json

import pytest
from quantlora_finetune.data.demo_text import demo_text
from quantlora_finetune.data.records import Chat, Exchange, Text
from quantlora_finetune.data.sources import not_read, read_records

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
        ('{"chosen": "a", "rejected": "b"}', r'line 1: a chosen and .* need a "prompt"'),
        (
            '{"conversations": [{"from": "me", "value": "q"}]}',
            r"line 1: who is 'me'\? Known are human",
        ),
        ('{"instruction": "i", "input": 3, "output": "o"}', r'line 1: its "input" is int'),
        (
            '{"conversations": [{"from": "function_call", "value": "{"}]}',
            r"line 1: a function_call is no JSON",
        ),
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


TABLE = 'text,id\n"one, two\nlines",1\n\nNA,2\n'

#: A file, its bytes, and the records in it.
FILES = {
    "t.csv": (TABLE.encode(), [Text("one, two\nlines"), Text("NA")]),
    "excel.csv": (b"\xef\xbb\xbfprompt;completion\r\np;c, d\r\n", [Exchange("p", "c, d")]),
    "t.tsv": (b"prompt\tcompletion\np, q\tc\n", [Exchange("p, q", "c")]),
    "T.CSV": (b"text\n123\n", [Text("123")]),
    "a.json": (b'[{"text": "a"},\n {"text": "b"}]', [Text("a"), Text("b")]),
    "one.json": (b'{"text": "a"}', [Text("a")]),
    "lines.json": (b'{"text": "a"}\n{"text": "b"}', [Text("a"), Text("b")]),
    "l.ndjson": (b'\xef\xbb\xbf{"text": "a"}\n', [Text("a")]),
    "mark.txt": ("grüß".encode("utf-8-sig"), [Text("grüß")]),
    "wide.txt": ("grüß".encode("utf-16"), [Text("grüß")]),
    "wider.txt": ("grüß".encode("utf-32"), [Text("grüß")]),
    "empty.jsonl": (b'{"text": "a"}\n{"text": " "}\n', [Text("a")]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_what_it_is(name, tmp_path):
    content, records = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert read_records(str(tmp_path / name), "train") == records
    assert read_records(str(tmp_path), "train") == records


REFUSED = {
    "no_header.csv": (b"one,two\nthree,four\n", "expected .* found one, two"),
    "ragged.csv": (b"text,id\na,b,c\n", "line 2: 3 values for 2 columns"),
    "twice.csv": (b"text,text\na,b\n", "two columns have the same name"),
    "latin.csv": ("text\ngrüß\n".encode("latin-1"), "cannot be read as UTF-8"),
    "latin.txt": ("grüß".encode("latin-1"), "cannot be read as UTF-8"),
    "zero.txt": (b"a\0b", "is no text"),
    "page.html": (b"<p>text</p>", "the ending '.html' does not say"),
    "packed.jsonl.gz": (b'{"text": "a"}', "the ending '.gz' does not say"),
    "notes.docx": (b"PK", "the ending '.docx' does not say"),
    "wrong.parquet": (b"no parquet", "cannot be read"),
    "null.jsonl": (b'{"text": null}', r"found text \(NoneType\)"),
    "deep.json": (b"[" * 100_000, "not a JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("alone", [True, False])
def test_what_cannot_be_read_right_is_refused_by_name(name, alone, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.jsonl").write_text('{"text": "a"}')
    with pytest.raises(FinetuneError, match=message) as error:
        read_records(str(tmp_path / name if alone else tmp_path), "train")
    assert name in str(error.value)


def test_a_mixed_folder_is_read_whole(tmp_path):
    (tmp_path / "notes.txt").write_text("first\n\nsecond\n")
    (tmp_path / "text.jsonl").write_text('{"prompt": "p", "completion": "c"}')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "t.csv").write_text("text\nthird\n")
    (tmp_path / ".hidden").write_text("no")
    found = read_records(str(tmp_path), "train")
    assert found == [Text("third"), Text("first\n\nsecond\n"), Exchange("p", "c")]


def test_files_of_a_folder_are_of_the_split_that_their_names_say(tmp_path):
    for name in ("train.jsonl", "test.jsonl", "more.jsonl", "data-validation-00.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "README.md").write_text("# What this is")
    read = {s: read_records(str(tmp_path), s) for s in ("train", "test", "validation")}
    assert read["train"] == [Text("more.jsonl"), Text("train.jsonl")]
    assert read["test"] == [Text("test.jsonl")]
    assert read["validation"] == [Text("data-validation-00.jsonl")]


def test_what_a_folder_has_beside_the_data_is_named(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}')
    (tmp_path / "README.md").write_text("# What this is")
    (tmp_path / ".hidden").write_text("no")
    assert not_read(str(tmp_path), "train") == ["README.md", "test.jsonl"]
    assert not_read(str(tmp_path / "train.jsonl"), "train") == not_read(None, "train") == []


def test_a_readme_among_running_text_is_read(tmp_path):
    for name in ("README.md", "notes.txt"):
        (tmp_path / name).write_text(name)
    assert read_records(str(tmp_path), "train") == [Text("README.md"), Text("notes.txt")]
    assert not_read(str(tmp_path), "train") == []


@pytest.mark.parametrize(
    "row", [{"text": "a\ud800"}, {"messages": [{"role": "user", "content": "\udc00"}]}]
)
def test_half_a_surrogate_pair_is_named_with_its_line(row, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "\U0001f600"}) + "\n" + json.dumps(row))
    with pytest.raises(FinetuneError, match=r"line 2: \\ud[8c]00 is half of a surrogate pair"):
        read_records(str(tmp_path), "train")


CALL = {"function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
CALLED = {"function": {"name": "weather", "arguments": {"city": "Bonn"}}}
MESSAGE_FORMS = {
    "a call": (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALLED]},
    ),
    "a call without content": (
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALLED]},
    ),
    "parts": (
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, "b"]},
        {"role": "assistant", "content": "ab"},
    ),
    "nulls of a table": (
        {"role": "assistant", "content": "a", "tool_calls": None, "name": None},
        {"role": "assistant", "content": "a"},
    ),
}


@pytest.mark.parametrize("form", MESSAGE_FORMS)
def test_messages_come_in_one_form(form, tmp_path):
    given, wanted = MESSAGE_FORMS[form]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": [MESSAGES[0], given]}))
    assert read_records(str(tmp_path / "c.jsonl"), "train") == [Chat((MESSAGES[0], wanted))]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "assistant", "content": None}, '"content" is null'),
        ({"role": "assistant", "content": 3}, '"content" is int'),
        ({"role": 3, "content": "a"}, '"role" is int'),
        ({"role": "user", "content": [{"type": "image"}]}, "a part of type 'image'"),
        ({"role": "user", "content": [{"type": "text"}]}, 'no "text"'),
        ({"role": "assistant", "content": None, "tool_calls": [3]}, "no function with a name"),
        ("hello", 'needs "role" and "content"'),
    ],
)
def test_a_message_that_cannot_be_learned_is_named(message, fault, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": [*MESSAGES, message]}))
    with pytest.raises(FinetuneError, match=f"line 1: .*{fault}"):
        read_records(str(tmp_path / "c.jsonl"), "train")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "data.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FinetuneError, match="cannot be read as UTF-8"):
        read_records(str(file), "train")


def test_a_folder_of_parquet_files_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "p", "completion": "c"}])
    rows.to_parquet(tmp_path / "train.parquet")
    assert read_records(str(tmp_path), "train") == [Exchange("p", "c")]
    with pytest.raises(FinetuneError, match="no data files of the split 'test'"):
        read_records(str(tmp_path), "test")


def test_a_data_set_that_cannot_be_fetched_is_named():
    pytest.importorskip("datasets")
    with pytest.raises(FinetuneError, match="as a data set it cannot be loaded"):
        read_records("no-such-org/no-such-data:en", "train")


def test_the_demonstrations_text_repeats_no_paragraph():
    paragraphs = demo_text().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 1000
    assert sum(map(len, paragraphs)) > 200_000


def test_an_empty_folder_is_called_empty(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(FinetuneError, match="is empty: there is nothing in it to train on"):
        read_records(str(tmp_path), "train")
