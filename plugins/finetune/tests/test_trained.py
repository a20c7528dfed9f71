"""What is done after a training: chat, generate, eval, merge, compare, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from quantlora_finetune.command.chat import _line
from quantlora_finetune.trained.chat import Chat, run_line
from quantlora_finetune.trained.comparison import different_settings
from quantlora_finetune.trained.reply import Sampling, prompt_ids, replies
from quantlora_finetune.trained.trained_model import open_trained
from typer.testing import CliRunner

from quantlora.cli import app
from quantlora.errors import FinetuneError

from .conftest import QUICK, report_in

SHORT = ["--max-tokens", "8"]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def invoke(*arguments, **more):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **more)


def train(output: Path, tiny: Path, data: Path, *options: str) -> Path:
    named = ["--model", tiny, "--data", data, "--output", output, *QUICK, *options]
    found = invoke("finetune", *named)
    assert found.exit_code == 0, found.output
    return output


@pytest.fixture(scope="module")
def trained(tiny, text, tmp_path_factory):
    """An adapter over 3-bit weights: a format that the base's own folder does not have."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train(folder, tiny, text, "--backend", "normalfloat", "--bits", "3")


@pytest.fixture(scope="module")
def chat_model(tiny, tmp_path_factory):
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("chat") / "model"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def answered(chat_model, tmp_path_factory):
    """Questions that all have the same answer, which the adapter has learned."""
    home = tmp_path_factory.mktemp("answered")
    rows = [{"prompt": f"the quick {i}", "completion": "fox"} for i in range(40)]
    (home / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    learned = ["--backend", "float", "--steps", "60", "--save-every", "60"]
    return train(home / "run", chat_model, home / "answers.jsonl", *learned)


def test_eval_finds_the_perplexities_of_the_run_to_the_last_bit(trained):
    found = json.loads(invoke("eval", trained, "--json", "--batch-size", "2").stdout)
    wanted = report_in(trained)["perplexity"]
    assert found["without_adapter"]["perplexity"] == wanted["before"]
    assert found["with_adapter"]["perplexity"] == wanted["after"]


def test_eval_counts_the_answers_that_are_exactly_as_wanted(answered):
    data = answered.parent / "answers.jsonl"
    found = json.loads(invoke("eval", answered, "--data", data, "--json").stdout)
    assert (found["with_adapter"]["exact"], found["with_adapter"]["answers"]) == (40, 40)
    assert found["without_adapter"]["exact"] == 0


def test_eval_shows_a_table_and_what_to_type_next(trained):
    output = invoke("eval", trained).output
    assert "without adapter" in output
    assert f"quantlora chat {trained}" in output.replace("\n", "")


def test_generate_replies_in_order_and_to_each_alone_as_in_a_batch(trained, tmp_path):
    texts = ["the quick", "the lazy dog jumps over", "fox"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    written = tmp_path / "replies.jsonl"
    result = invoke("generate", trained, "-f", tmp_path / "prompts.txt", "-o", written, *SHORT)
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == texts, result.output
    alone = json.loads(invoke("generate", trained, "--prompt", texts[1], *SHORT).stdout)
    assert alone["reply"] == rows[1]["reply"]


def test_generate_replies_with_and_without_the_adapter(trained):
    found = json.loads(invoke("generate", trained, "-p", "the quick", "--base", *SHORT).stdout)
    assert found["reply"] != found["base_reply"]


def test_what_is_drawn_is_fixed_by_the_seed(trained):
    arguments = ["generate", trained, "-p", "the", "--temperature", "2", *SHORT]
    first, again, other = (invoke(*arguments, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_generate_never_writes_over_a_file(trained, text):
    before = text.read_bytes()
    result = invoke("generate", trained, "-p", "x", "-o", text)
    assert (result.exit_code, text.read_bytes()) == (1, before)
    assert "exists: name another file" in result.output.replace("\n", " ")


def test_chat_streams_the_greedy_reply_and_shows_the_bases(trained):
    model = open_trained(trained)
    ids = prompt_ids(model, "the quick brown")
    reply = replies(model, [ids], Sampling(8))[0]
    with model.without_adapter():
        base = replies(model, [ids], Sampling(8))[0]
    output = invoke("chat", trained, *SHORT, input="the quick brown\n/base\n/quit\n").output
    assert 0 < output.index(reply) < output.index(base, output.index(reply) + 1)


def test_chat_remembers_what_was_said(answered):
    chat = Chat(open_trained(answered), Sampling(4), "Be brief.", lambda text: None)
    first = chat.ask("one")
    chat.ask("two")
    chat.ask_base()
    assert [message["content"] for message in chat.messages[:3]] == ["Be brief.", "one", first]
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * 2]


def test_a_reply_ends_at_the_tokenizers_eos_where_the_model_names_another(answered):
    opened = open_trained(answered)
    opened.model.generation_config.eos_token_id = 5
    ids = prompt_ids(opened, "the quick 1")
    assert replies(opened, [ids], Sampling(max_tokens=40)) == ["fox"]


def test_ctrl_c_stops_a_reply_and_keeps_what_there_is(answered):
    seen: list[str] = []

    def interrupt(text: str) -> None:
        seen.append(text)
        if len(seen) == 2:
            raise KeyboardInterrupt

    chat = Chat(open_trained(answered), Sampling(40), None, interrupt)
    reply = chat.ask("the quick brown fox jumps")
    assert chat.messages[-1]["content"] == reply
    assert reply.startswith("".join(seen[:2]))


@pytest.mark.parametrize("line", ["/bse", "/base", "/base now"])
def test_a_line_that_cannot_be_is_told_and_the_chat_goes_on(trained, line):
    output = invoke("chat", trained, input=f"{line}\n/help\n").output
    assert "error: " in output
    assert "forget the conversation" in output


def test_bytes_that_are_no_text_are_told_to_who_typed_them(answered):
    talk = Chat(open_trained(answered), Sampling(max_tokens=4), None, print)
    with pytest.raises(FinetuneError, match="no UTF-8 text"):
        run_line(talk, "h\udcffi")


def test_a_reply_is_cut_at_the_end_of_the_model_and_says_so(tiny):
    output = invoke("chat", tiny, input="x" * 240 + "\n/quit\n").output
    assert "(cut off: " in output
    assert "reads at most 256 tokens" in output


def test_no_room_for_a_reply_is_told_and_the_chat_goes_on(tiny):
    output = invoke("chat", tiny, input="x" * 300 + "\nthe fox\n/quit\n").output
    assert "the conversation has 301 tokens, and" in output
    assert output.count("> ") == 3


def test_a_closed_input_ends_the_chat(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert _line() is None


def test_merge_writes_a_model_that_chats_without_an_adapter(trained, tmp_path):
    result = invoke("merge", trained, "--output", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    asked = ["-p", "the quick brown", *SHORT]
    folders = (trained, tmp_path / "merged")
    first, second = (json.loads(invoke("generate", f, *asked).stdout) for f in folders)
    assert first["reply"] == second["reply"]


def test_compare_shows_what_two_trainings_differ_in(trained, tiny, text, tmp_path):
    options = ["--backend", "normalfloat", "--bits", "3", "--rank", "2", "--steps", "1"]
    other = train(tmp_path / "other", tiny, text, *options)
    output = invoke("compare", trained, other, "--prompt", "the quick", *SHORT).output
    figures = [report_in(folder)["perplexity"]["after"] for folder in (trained, other)]
    assert all(f"{figure:.2f}" in output for figure in figures)
    settings = output.split("On ")[0]
    assert [name in settings for name in ("rank", "steps", "variant")] == [True, True, False]


def test_settings_have_the_same_names_where_one_adapter_is_pefts(trained, tmp_path):
    peft = Path(shutil.copytree(trained, tmp_path / "peft"))
    (peft / "run.json").unlink()
    assert different_settings(trained, peft) == {}


def test_eval_and_compare_take_names_of_columns(trained, tiny, tmp_path):
    (tmp_path / "faq.csv").write_text("frage,antwort\nthe quick,fox\n")
    named = ["--data", tmp_path / "faq.csv", "--map", "prompt=frage,completion=antwort"]
    assert "of 1 " in invoke("eval", trained, *named).output
    output = invoke("compare", trained, tiny, *named).output
    assert "of 1 " in output
    assert "Next: quantlora " in output


MISTAKES = {
    "no such folder": (["eval", "missing"], "there is no folder missing"),
    "nothing in it": (["chat", "{tmp}"], "there is no adapter_config.json, so no adapter"),
    "nothing asked": (["generate", "{run}"], "give --prompt TEXT, or --file FILE"),
    "no such prompts": (["generate", "{run}", "-f", "missing"], "there is no file missing"),
    "no room": (["generate", "{run}", "-p", "x", "--max-tokens", "9999"], "reads at most 256"),
    "no such base": (["chat", "{run}", "--model", "./gone"], "name it with --model"),
    "a model is no adapter": (["merge", "{tiny}", "-o", "{tmp}/out"], "nothing to merge in it"),
    "a model has no other base": (["chat", "{tiny}", "--model", "{tiny}"], "is a whole model"),
    "system without a template": (["chat", "{run}", "--system", "x"], "has no chat template"),
    "chat without a template": (["generate", "{run}", "--chat", "-p", "x"], "no chat template"),
    "output in use": (["merge", "{run}", "-o", "{run}"], "is not an empty folder"),
    "twice the same": (["compare", "{run}", "{run}"], "are the same folder"),
    "seed beyond torch's": (["generate", "{run}", "-p", "x", "--seed", "4294967296"], "--seed"),
    "next to no heat": (["generate", "{run}", "-p", "x", "--temperature", "1e-9"], "use 0, which"),
    "no end of heat": (["generate", "{run}", "-p", "x", "--temperature", "inf"], "use 0, which"),
    "under a file": (["generate", "{run}", "-p", "x", "-o", "{text}/o"], "it is not a folder"),
    "merged under a file": (["merge", "{run}", "-o", "{text}/o"], "is a file, not a folder"),
    "nobody asks": (["generate", "{run}", "-f", "{tmp}/silent.jsonl"], "no message in it"),
    "eval beyond the model": (["eval", "{run}", "-d", "{text}", "--length", "300"], "at most 256"),
    "compare without room": (["compare", "{run}", "{tiny}", "-p", "x" * 300], "at most 256"),
    "one folder too high": (["chat", "{run}/.."], "is no adapter, but holds some: name"),
    "exact without qalora": (["merge", "{run}", "-o", "{tmp}/o", "--mode", "exact"], "exact"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_gets_one_message_and_no_traceback(trained, tiny, text, tmp_path, case):
    arguments, message = MISTAKES[case]
    paths = {"run": trained, "tiny": tiny, "text": text, "tmp": tmp_path}
    (tmp_path / "silent.jsonl").write_text('{"messages": [{"role": "assistant", "content": "x"}]}')
    result = invoke(*(argument.format(**paths) for argument in arguments))
    assert result.exit_code == (2 if message == "--seed" else 1), result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
