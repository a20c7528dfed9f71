"""From records to token sequences: BOS first, nothing twice, only answers learned."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from quantlora_finetune.data.dataset import collate_with, load_dataset
from quantlora_finetune.data.examples import IGNORED, TrainingTokenizer, examples_of
from quantlora_finetune.data.records import Chat, Exchange, Text, record_of
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.reporting.evaluation import continuation

from quantlora.errors import FinetuneError
from quantlora.testing.models import ALPHABET, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TOKENS = TrainingTokenizer(TOKENIZER)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
TEXTS = st.lists(st.text(ALPHABET, min_size=1, max_size=200), min_size=1, max_size=4)


@given(texts=TEXTS, length=st.integers(8, 40))
@settings(deadline=None)
def test_windows_cut_the_text_without_gap_or_overlap(texts, length):
    windows = examples_of([Text(text) for text in texts], TOKENS, length)
    stream = [id for text in texts for id in [*TOKENS.encode(text), *TOKENS.eos]][:-1]
    joined = [id for window in windows for id in window.input_ids[1:]]
    assert joined == stream[: len(joined)]
    assert len(stream) - len(joined) < length - 1


@given(texts=TEXTS, length=st.integers(8, 40))
@settings(deadline=None)
def test_each_window_starts_with_bos_and_has_the_length(texts, length):
    for window in examples_of([Text(text) for text in texts], TOKENS, length):
        assert window.input_ids[0] == TOKENIZER.bos_token_id
        assert len(window.input_ids) == length
        assert (window.given, window.learned) == (1, length - 1)


def test_only_the_completion_is_learned_and_it_ends_with_eos():
    [example] = examples_of([Exchange("ask:", "answer")], TOKENS, 64)
    learned = [id for id in example.labels if id != IGNORED]
    assert learned == [*TOKENS.encode("answer"), TOKENIZER.eos_token_id]
    assert example.input_ids[0] == TOKENIZER.bos_token_id


def test_a_prompt_that_fills_the_length_gives_no_example():
    assert examples_of([Exchange("x" * 100, "answer")], TOKENS, 64) == []


@pytest.fixture
def chat_tokens():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return TrainingTokenizer(tokenizer)


MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "see you"},
]


def test_each_turn_of_the_assistant_is_one_example(chat_tokens):
    examples = examples_of([Chat(tuple(MESSAGES))], chat_tokens, 64)
    decode = chat_tokens.tokenizer.decode
    assert [decode(one.input_ids[one.given :]) for one in examples] == ["hello\n", "see you\n"]
    assert decode(examples[1].input_ids) == "<s>u:hi\na:hello\nu:bye\na:see you\n"


def test_a_template_that_writes_bos_itself_gives_one_bos(chat_tokens):
    for example in examples_of([Chat(tuple(MESSAGES))], chat_tokens, 64):
        assert example.input_ids.count(TOKENIZER.bos_token_id) == 1


def test_turns_in_a_conversational_prompt_are_not_learned(chat_tokens):
    row = {"prompt": MESSAGES[:3], "completion": MESSAGES[3:]}
    [example] = examples_of([record_of(row, "here")], chat_tokens, 64)
    assert chat_tokens.tokenizer.decode(example.input_ids[example.given :]) == "see you\n"


CALL = {"function": {"name": "weather", "arguments": {"city": "bonn"}}}
ASKED = [{"role": "user", "content": "q"}]


def test_a_template_that_leaves_out_tool_calls_is_no_empty_answer(chat_tokens):
    called = record_of(
        {"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "row"
    )
    with pytest.raises(FinetuneError, match=r"leaves out tool calls \(weather first\)"):
        examples_of([called], chat_tokens, 40)


def test_a_template_that_writes_tools_and_calls_is_given_both(chat_tokens):
    calls = (
        "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments.city }}"
        "{% endfor %}"
    )
    chat_tokens.tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t['name'] }} {% endfor %}"
        + TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] }}" + calls)
    )
    messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    called = record_of({"messages": messages, "tools": [{"name": "weather"}]}, "row")
    (example,) = examples_of([called], chat_tokens, 99)
    text = chat_tokens.tokenizer.decode(example.input_ids[example.given :])
    assert "weather bonn" in text
    assert "weather" in chat_tokens.tokenizer.decode(example.input_ids[: example.given])


def test_what_a_template_refuses_is_an_error_with_its_words(chat_tokens):
    chat_tokens.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(FinetuneError, match=r"cannot write .* user, assistant: .*no system role"):
        examples_of(
            [record_of({"messages": [*ASKED, {"role": "assistant", "content": "a"}]}, "")],
            chat_tokens,
            40,
        )


def test_messages_need_a_chat_template():
    with pytest.raises(FinetuneError, match="no chat template"):
        examples_of([Chat(tuple(MESSAGES))], TOKENS, 64)


def test_of_a_prompt_too_long_for_the_positions_the_end_is_continued():
    """GPT-2 has a table of positions: one more is an IndexError."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": len(TOKENIZER), "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=64, bos_token_id=1, eos_token_id=2))
    assert len(continuation(model, TOKENS, "x" * 100, longest=64)) > 0
    with pytest.raises(IndexError):
        continuation(model, TOKENS, "x" * 100)
    ids = TOKENS.starting("abcdef")
    assert TOKENS.ending(ids, 4) == [*TOKENS.bos, *TOKENS.encode("def")]
    assert TOKENS.ending(ids, 7) == ids


def test_a_batch_is_filled_up_where_nothing_is_seen_or_learned():
    records = [Exchange("a", "bcd"), Exchange("a", "b")]
    batch = collate_with(7)(examples_of(records, TOKENS, 64))
    assert batch["input_ids"].shape == (2, 6)
    filled = batch["attention_mask"] == 0
    assert filled.sum() == 2
    assert (batch["input_ids"][filled] == 7).all()
    assert (batch["labels"][filled] == IGNORED).all()


def test_nothing_is_both_trained_and_measured_on(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(map(str, range(2000))))
    options = FinetuneOptions(data=str(file), length=16, held_out=0.25, eval_examples=20)
    data = load_dataset(options, TOKENS)
    train = {tuple(one.input_ids) for one in data.train}
    assert len(data.held_out) == 20
    assert not train & {tuple(one.input_ids) for one in data.held_out}
