"""A tiny gpt-oss in MXFP4, written tensor by tensor as the files on the hub have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 2,
}
#: What official gpt-oss folders leave in 16 bits.
FLOAT = [
    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
]  # fmt: skip


def write_gpt_oss(folder: Path) -> dict[str, Tensor]:
    """The tensors of the folder, by their names in the file."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(**SIZES)
    tensors: dict[str, Tensor] = {}
    for name, value in GptOssForCausalLM(config).state_dict().items():
        if value.dim() == 3:  # (experts, in, out)
            experts, width, rows = value.shape
            shape = (experts, rows, width // 32)
            tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8)
        else:
            tensors[name] = 0.2 * torch.randn_like(value)
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    own = json.loads((folder / "config.json").read_text())
    own["architectures"] = ["GptOssForCausalLM"]
    own["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": FLOAT}
    (folder / "config.json").write_text(json.dumps(own))
    return tensors


def rewrite(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """The folder's file with some tensors changed, or left out."""
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
