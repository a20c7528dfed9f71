"""The same model with the same adapter, by whom it is computed: the arms of a comparison."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import quantlora


@dataclass(frozen=True)
class Size:
    """A Llama's sizes, the rank and how often to measure."""

    layers: int
    hidden: int
    inner: int
    tokens: int
    r: int
    rounds: int


#: The layers of Llama 3.2 1B; and what a check in CI takes a second for.
FULL = Size(layers=4, hidden=2048, inner=8192, tokens=1024, r=16, rounds=7)
SMOKE = Size(layers=1, hidden=128, inner=256, tokens=16, r=4, rounds=1)

#: What each format is packed with; products are in bfloat16.
FORMATS: dict[str, dict[str, Any]] = {
    "bitsandbytes_4bit": {"compute_dtype": torch.bfloat16},
    "bitsandbytes_8bit": {},
    "normalfloat": {"bits": 4},
    "gptq": {"bits": 4, "group_size": 64},
    "awq": {"bits": 4, "group_size": 64},
    "float": {},
}
#: Formats whose library has its own layer that PEFT wraps on a CPU.
PEERS = ("bitsandbytes_4bit", "bitsandbytes_8bit", "float")


def llama(size: Size, device: str, layers: int | None = None) -> LlamaForCausalLM:
    """A bfloat16 Llama of random weights, with a vocabulary that takes no time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=layers or size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=max(1, size.hidden // 256),
        max_position_embeddings=2048,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).to(device)


def packed(size: Size, form: str, device: str, layers: int | None = None) -> nn.Module:
    """The same in ``form``, without adapters; its layers are the library's own."""
    return quantized(llama(size, device, layers), form)


def quantized(model: nn.Module, form: str) -> nn.Module:
    """``model`` in ``form``, in place."""
    if form != "float":
        options = FORMATS[form]
        with warnings.catch_warnings(action="ignore"):  # GPTQ without texts rounds: of no matter
            quantlora.quantize(
                model, backend=form, quantize_options=options, target_modules="all-linear"
            )
    return _as_upstream(model)


def _as_upstream(model: nn.Module) -> nn.Module:
    """bitsandbytes may use its CPU kernel for inference, as in a model that it packed itself."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = type(layer)(32, 32).support_avx512bf16_for_cpu
    return model


def repacks(model: nn.Module) -> bool:
    """Whether a forward in eval mode repacks weights of ``model``, and makes PEFT's DoRA wrong.

    bitsandbytes does so where its CPU kernel is: what `dequantize_4bit` gives from then on, and
    PEFT takes the norms of, is noise.
    """
    return any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules())


def ours(base: nn.Module, size: Size, **fields: Any) -> nn.Module:
    """A copy of ``base`` with quantlora's layers, B not zero."""
    model = quantlora.wrap(copy.deepcopy(base), **_fields(size, fields))
    torch.manual_seed(1)
    for parameter in trained(model):
        nn.init.normal_(parameter, std=0.02)
    if fields.get("use_dora"):
        _start_at_one(model)
    return model


def peft(base: nn.Module, mine: nn.Module, form: str, size: Size, **fields: Any) -> nn.Module:
    """A copy of ``base`` with PEFT's layers and the numbers of ``mine``."""
    from peft import LoraConfig, get_peft_model

    copied: Any = copy.deepcopy(base)
    if form.startswith("bitsandbytes"):  # PEFT knows such a model by this flag
        flag = "is_loaded_in_4bit" if "4bit" in form else "is_loaded_in_8bit"
        setattr(copied, flag, True)
    model: nn.Module = get_peft_model(copied, LoraConfig(**_fields(size, fields)))
    mine_by_name = dict(mine.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = name.removeprefix("base_model.model.")
                parameter.copy_(mine_by_name[key])
    return model


def _fields(size: Size, fields: dict[str, Any]) -> dict[str, Any]:
    common = {"r": size.r, "lora_alpha": 2 * size.r, "target_modules": "all-linear"}
    return {**common, **fields}


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a step is for."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _start_at_one(model: nn.Module) -> None:
    """Magnitudes near the norms, as training leaves them."""
    for _, layer in quantlora.lora_layers(model):
        m = layer.adapter_tensors("default")["lora_magnitude_vector"]
        with torch.no_grad():
            m.copy_(layer.dequantize().float().norm(dim=1) * 1.1)


def tokens(rows: int, length: int, device: str) -> Tensor:
    torch.manual_seed(2)
    return torch.randint(0, 512, (rows, length), device=device)
