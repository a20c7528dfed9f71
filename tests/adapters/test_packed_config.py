"""A model that is packed here and saved without its adapters can be loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import quantlora
from quantlora.errors import AdapterFileError, AdapterWarning
from tests.tools.versions import IS_TRANSFORMERS_5

#: `from_pretrained` of older ones loads bitsandbytes on few CPUs, and has ``torch_dtype``.
pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 loads otherwise")

BACKENDS = ["bitsandbytes_4bit", "normalfloat"]
IDS = torch.tensor([[5, 6, 7, 8, 2]])
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LOFTQ: dict[str, Any] = {
    "init_lora_weights": "loftq",
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 2},
}


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4)
    return transformers.LlamaForCausalLM(config).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def reloaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def loftq(backend: str) -> Any:
    model = quantlora.wrap(llama(), backend=backend, r=4, **LOFTQ, **TARGETS)
    return model.eval()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_base_that_loftq_has_changed_is_saved_as_the_warning_says(
    backend: str, tmp_path: Path
) -> None:
    model = loftq(backend)
    expected = logits(model)
    with pytest.warns(AdapterWarning, match="quantlora.unload, then model.save_pretrained"):
        quantlora.save_adapter(model, tmp_path / "adapter")
    again = reloaded(quantlora.unload(model), tmp_path / "base")
    quantlora.load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("done", ["merge_and_unload", "quantize"])
def test_a_model_that_was_packed_here_is_saved_with_its_format(
    backend: str, done: str, tmp_path: Path
) -> None:
    model = llama()
    if done == "quantize":
        quantlora.quantize(model, backend=backend, **TARGETS)
    else:
        quantlora.wrap(model, backend=backend, init_lora_weights=False, **TARGETS)
        quantlora.merge_and_unload(model)
    again = logits(reloaded(model, tmp_path))  # by upstream's own kernels, in half precision
    torch.testing.assert_close(again, logits(model), rtol=0, atol=5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_is_float_again_says_so(backend: str, tmp_path: Path) -> None:
    model = quantlora.quantize(llama(), backend=backend, **TARGETS)
    model = reloaded(model, tmp_path / "packed")
    quantlora.wrap(model, init_lora_weights=False, **TARGETS)
    quantlora.merge_and_unload(model, mode="dequantize")
    torch.testing.assert_close(logits(reloaded(model, tmp_path / "float")), logits(model))


def test_a_base_with_random_layers_is_refused(tmp_path: Path) -> None:
    quantlora.save_adapter(loftq("normalfloat"), tmp_path, convert=False)
    model = llama()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    with pytest.raises(AdapterFileError, match="neither that one nor the original one"):
        quantlora.load_adapter(model, tmp_path)


def test_where_config_json_cannot_name_the_format_the_plain_model_says_so() -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4)
    model = transformers.GPT2LMHeadModel(config)
    with pytest.warns(AdapterWarning, match="nobody could load them again"):
        quantlora.quantize(model, backend="normalfloat", target_modules=["c_attn"])
