"""Packed rows: each example once, and to the model as if it were in a row of its own."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from quantlora_finetune.data.dataset import collate_with, tokens_in
from quantlora_finetune.data.examples import Example
from quantlora_finetune.data.packing import PackedRow, packed
from quantlora_finetune.model.packing_check import check_packing
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

import quantlora
from quantlora.errors import ConfigError
from quantlora.testing.models import tiny_llama

from .conftest import report_in

EXAMPLES = [
    Example([(3 + 5 * i * n) % 80 for i in range(n)], given)
    for n, given in ((9, 3), (4, 1), (14, 6), (7, 2), (5, 4))
]


def gemma():
    sizes = {"vocab_size": 82, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**sizes, **heads, sliding_window=4, layer_types=kinds)
    return Gemma3ForCausalLM(config)


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=82, n_embd=32, n_layer=2, n_head=2))


def losses(model, batch):
    """The mean loss of each example, by its tokens: packed or not."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    labels = batch["labels"][:, 1:]
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    return each[labels != -100].sort().values


@given(st.lists(st.integers(2, 30), min_size=1, max_size=60))
@settings(deadline=None)
def test_each_example_is_in_one_row_and_no_row_is_too_long(sizes):
    examples = [Example([i] * size, 1) for i, size in enumerate(sizes)]
    rows = packed(examples, 30)
    assert all(len(row.input_ids) <= 30 for row in rows)
    there = sorted(example.input_ids[0] for row in rows for example in row.examples)
    assert there == list(range(len(sizes)))
    fewest = -(-sum(sizes) // 30)
    assert len(rows) <= max(2 * fewest - 1, 1)  # two rows that are half empty would be one


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [tiny_llama, gemma, gpt2])
def test_packed_examples_have_the_losses_they_have_alone(make, attention):
    torch.manual_seed(0)
    model = make().double().eval()
    model.set_attn_implementation(attention)
    quantlora.wrap(model, r=2)
    rows, collate = packed(EXAMPLES, 24), collate_with(0)
    assert len(rows) == 2
    found = losses(model, collate(rows))
    wanted = torch.cat([losses(model, collate([example])) for example in EXAMPLES]).sort().values
    tolerance = 1e-7 if attention == "eager" else 1e-12  # its softmax is float32 in any case
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    check_packing(model, 0)


def test_the_loss_of_a_batch_and_its_gradient_are_those_of_the_examples():
    model = quantlora.wrap(tiny_llama().double(), r=2)
    found = []
    for rows in (packed(EXAMPLES, 24), EXAMPLES):
        model.zero_grad()
        loss = quantlora.causal_lm_loss(model, collate_with(0)(rows))
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_tokens_are_counted_without_padding():
    rows = packed(EXAMPLES, 24)
    counts = [int(tokens_in(collate_with(0)(part))) for part in (rows, EXAMPLES)]
    assert counts == [39, 39]


def test_a_model_whose_examples_see_one_another_is_refused():
    mamba = MambaConfig(vocab_size=82, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ConfigError, match="MambaForCausalLM cannot be trained on packed rows"):
        check_packing(MambaForCausalLM(mamba), 0)
    bloom = BloomConfig(vocab_size=82, hidden_size=32, n_layer=2, n_head=2)
    with pytest.raises(ConfigError, match="BloomForCausalLM cannot be trained on packed rows"):
        check_packing(BloomForCausalLM(bloom), 0)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_a_run_on_packed_rows_learns_and_says_how_many_there_are(run, arguments, tmp_path, trainer):
    rows = [{"prompt": "q" * (1 + i % 5), "completion": "abc" * (1 + i % 3)} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--data", tmp_path / "d.jsonl", "--packing", "--trainer", trainer, "--steps", "6"]
    result = run(*arguments, *given)
    assert result.exit_code == 0, result.output
    facts = report_in(tmp_path / "run")["data"]
    assert facts["train_examples"] == 36 > 2 * facts["train_rows"]
    assert f"36 examples to train on in {facts['train_rows']} rows" in result.output


def test_a_packed_row_knows_its_parts():
    row = PackedRow((Example([1, 2, 3], 2), Example([4, 5], 1)))
    assert (row.labels, row.learned) == ([-100, -100, 3, -100, 5], 2)
    assert row.position_ids == [0, 1, 2, 0, 1]
