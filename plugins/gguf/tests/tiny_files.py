"""Tiny GGUF files, written by the package ``gguf`` with the names and numbers of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

#: What every tiny model has, in Transformers' words; keys of an architecture beside it.
COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "vocab_size": 96, "head_dim": 16, "rope_theta": 10000.0,
}  # fmt: skip
#: By llama.cpp's architecture: Transformers' model type, and what differs.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "phi3": ("phi3", {"head_dim": None, "vocab_size": 32064}),
    "starcoder2": ("starcoder2", {"head_dim": None, "layer_norm_eps": 1e-5}),
    "nemotron": ("nemotron", {"norm_eps": 1e-5}),
    "gpt2": (
        "gpt2",
        {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_ctx": 1024, "max_position_embeddings": 1024},
    ),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2, "layer_norm_epsilon": 1e-5}),
    "falcon": ("falcon", {"num_kv_heads": 4, "head_dim": None}),
}


def write_tiny(
    folder: Path, architecture: str, block_type: str = "Q8_0", tied: bool = False
) -> Path:
    """A file with random weights: matrices in blocks, the rest in float32."""
    model_type, changes = FAMILIES[architecture]
    fields = {name: value for name, value in {**COMMON, **changes}.items() if value is not None}
    config = AutoConfig.for_model(model_type, **fields, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = get_gguf_hf_weights_map(model, TensorProcessor(config=config.to_dict()))
    path = folder / f"{architecture}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, architecture, fields)
    _write_tokenizer(writer, fields["vocab_size"])
    torch.manual_seed(0)
    for name, own in names.items():
        if own in (state := model.state_dict()) and not (tied and name == "output.weight"):
            _write_tensor(writer, name, state[own].shape, architecture, block_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: Any, size: int) -> None:
    """One token for each byte, as GPT-2 spells them, as far as there are so many tokens."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'()-\u0120\u010a"
    tokens = ["<s>", "</s>", *letters, "th"]
    tokens += [f"<{i}>" for i in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens[:size])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _write_config(writer: Any, architecture: str, fields: dict[str, Any]) -> None:
    for key, own in GGUF_CONFIG_MAPPING[architecture].items():
        value = fields.get(own)
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)


def _write_tensor(
    writer: Any, name: str, shape: tuple[int, ...], architecture: str, block_type: str
) -> None:
    turned = architecture == "gpt2" and ("attn_" in name or "ffn_" in name)
    shape = shape[::-1] if turned and len(shape) == 2 and "norm" not in name else shape
    values = (torch.randn(shape) * 0.1 + ("norm" in name)).numpy()
    kind = gguf.GGMLQuantizationType[block_type]
    if len(shape) == 2 and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values.astype(np.float32))
