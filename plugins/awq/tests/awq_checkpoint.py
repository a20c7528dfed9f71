"""An AutoAWQ checkpoint of a tiny Llama, byte by byte: numpy packs, neither library is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantlora.testing.models import tiny_llama, tiny_tokenizer

GROUP = 32
#: Of eight neighbours along the outputs, the one in each place of a word, lowest bits first.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(codes: np.ndarray) -> Tensor:
    """4-bit codes ``(rows, out)`` to int32 ``(rows, out / 8)``."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for place, column in enumerate(ORDER):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * place)
    return torch.from_numpy(words.view(np.int32).copy())


def quantized(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Buffers of a file, and the weight ``(out, in)`` in float32 that they stand for."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    dense = (codes - zeros[..., None]) * scales.float()[..., None]
    tensors = {
        "qweight": packed(codes.flatten(1).t().numpy()),
        "qzeros": packed(zeros.t().numpy()),
        "scales": scales.t().contiguous(),
    }
    return tensors, dense.flatten(1)


def write_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Write the model and its tokenizer; returns the weights by path."""
    model = tiny_llama(hidden_size=64, num_hidden_layers=1)
    tensors, dense = dict(model.state_dict()), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            buffers, dense[path] = quantized(tensors.pop(f"{path}.weight"))
            tensors |= {f"{path}.{name}": buffer for name, buffer in buffers.items()}
    model.config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
        "version": "gemm", "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return dense
