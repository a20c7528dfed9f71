"""--template, --system and --train-on-prompt: what is written, and what of it is learned."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from quantlora_finetune.data.examples import IGNORED, TrainingTokenizer, examples_of
from quantlora_finetune.data.records import Chat, Exchange, Instruction
from quantlora_finetune.data.template import TEMPLATES, split_marks, template_text
from quantlora_finetune.options.data import DataOptions
from quantlora_finetune.reporting.evaluation import prompt_of

from quantlora.errors import ConfigError
from quantlora.testing.models import tiny_tokenizer

TALK = [("user", "hello"), ("assistant", "yes"), ("user", "more"), ("assistant", "no")]
MESSAGES = tuple({"role": role, "content": content} for role, content in TALK)


def tokens(**options):
    return TrainingTokenizer(tiny_tokenizer(), DataOptions(**options))


def written(tokenizer, examples):
    """The text of each example, what is learned in brackets."""
    for example in examples:
        ids, start = example.input_ids, example.learned_from
        assert example.labels == [IGNORED] * start + ids[start:]
        given, learned = map(tokenizer.tokenizer.decode, (ids[:start], ids[start:]))
        yield f"{given}[{learned}]"


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_template_writes_every_turn_once_and_ends_the_answer(name):
    tokenizer = tokens(template=name, length=512)
    [first, second] = examples_of([Chat(MESSAGES)], tokenizer, 512)
    text = tokenizer.tokenizer.decode(second.input_ids)
    assert [text.count(word) for word in ("hello", "yes", "more", "no")] == [1, 1, 1, 1]
    assert tokenizer.tokenizer.eos_token_id in first.input_ids[first.given :]
    assert first.input_ids.count(tokenizer.tokenizer.bos_token_id) == 1


def test_the_sample_of_a_report_continues_what_was_learned_marks_and_all():
    tokenizer = tokens(template="alpaca", length=512)
    _, second = examples_of([Chat(MESSAGES)], tokenizer, 512)
    given = second.input_ids[: second.given]
    assert tokenizer.tokenizer.eos_token_id in given
    assert tokenizer.starting(prompt_of(second, tokenizer)) == given


@pytest.mark.skipif(not find_spec("trl"), reason="compares with the templates that TRL ships")
@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "chatml"])
def test_a_template_writes_what_the_models_own_writes(name):
    import trl

    theirs = Path(trl.__file__).parent / "chat_templates"
    tokenizer, text = tiny_tokenizer(), []
    tokenizer.bos_token = None if name in ("phi3", "chatml") else "<s>"
    file = theirs / f"{'qwen2_5' if name == 'chatml' else name}.jinja"
    system = {"role": "system", "content": "s"}
    talk = MESSAGES[:3] if name == "gemma" else [system, *MESSAGES[:3]]
    for template in (file.read_text(), template_text(name)):
        write = tokenizer.apply_chat_template
        text.append(write(talk, chat_template=template, tokenize=False, add_generation_prompt=True))
    assert text[0] == text[1]


def test_a_system_message_goes_before_conversations_that_have_none():
    tokenizer = tokens(template="alpaca", system="Be brief.")
    own = ({"role": "system", "content": "Mine."}, *MESSAGES[:2])
    for record, start in (
        (Chat(MESSAGES[:2]), "Be brief."),
        (Instruction("hello", "", "yes"), "Be brief."),
        (Chat(own), "Mine."),
    ):
        [text] = written(tokenizer, examples_of([record], tokenizer, 256))
        assert text.startswith(f"<s>{start}\n\n")
        assert text.endswith("[yes</s>\n\n]")
    bare = tokens(system="Be brief.")
    [text] = written(bare, examples_of([Instruction("hello", "", "yes")], bare, 256))
    assert text.startswith("<s>Be brief.\n\n")


def test_prompts_are_learned_when_that_is_asked_for_each_turn_once():
    tokenizer = tokens(template="alpaca", train_on_prompt=True)
    [text] = written(tokenizer, examples_of([Chat(MESSAGES)], tokenizer, 256))
    assert text.startswith("<s>[")
    assert [text.count(word) for word in ("hello", "yes", "more", "no")] == [1, 1, 1, 1]
    [text] = written(tokenizer, examples_of([Exchange("ask", "so")], tokenizer, 256))
    assert text == "<s>[askso</s>]"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("chatlm", "the names are alpaca, chatml, .* Did you mean chatml?"),
        ("FILE", "holds no Jinja template"),
        ("{% for %}", "cannot write a question and its answer: TemplateSyntaxError"),
        ("{{ 1 }}", "leaves out the assistant's answers"),
    ],
)
def test_a_template_that_is_none_is_refused(tmp_path, given, message):
    file = tmp_path / "t.txt"
    file.write_text("no markup")
    with pytest.raises(ConfigError, match=message):
        tokens(template=str(file) if given == "FILE" else given)


def test_marks_that_the_tokenizer_has_no_token_for_are_known():
    tokenizer = tokens(template="chatml")
    assert split_marks(tokenizer.tokenizer) == ["<|im_start|>", "<|im_end|>"]
    assert split_marks(tokens(template="alpaca").tokenizer) == []


@pytest.mark.parametrize("option", ["--template=chatml", "--system=Be brief."])
def test_an_option_for_conversations_is_refused_where_there_are_none(run, arguments, option):
    result = run(*arguments, option)
    assert result.exit_code == 1
    assert "is for conversations, and the data has none" in " ".join(result.stderr.split())


@pytest.mark.slow
def test_a_run_keeps_its_template_and_the_commands_after_it_use_it(run, arguments, tmp_path):
    rows = [{"question": f"what {i}?", "answer": f"that {i % 3}"} for i in range(30)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}")
    given = ["--data", tmp_path / "d.jsonl", "--template", file, "--system", "s", "--steps", "2"]
    result = run(*arguments, *given)
    assert result.exit_code == 0, result.output
    assert "The tokenizer has no token" not in result.output
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == file.read_text()
    text = file.read_text()
    file.unlink()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["template"] == text
    assert run("eval", tmp_path / "run").exit_code == 0


def test_the_data_command_marks_what_is_learned_without_colors(run, tiny, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": "why", "answer": "so"}\n' * 3)
    given = ["--template", "alpaca", "--system", "Be brief.", "--packing"]
    output = run("data", tmp_path / "d.jsonl", "--model", tiny, *given).output
    assert "«so</s>" in output
    assert "Packed: 2 rows of at most 128 tokens." in output
    assert "--template alpaca --system 'Be brief.' --packing" in output
