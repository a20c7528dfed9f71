"""GPTQ checkpoints of a tiny Llama, written with torch, numpy and safetensors alone.

Round-to-nearest, with a packing of its own (a stream of bits), so that neither library nor the
plugin is asked what a checkpoint looks like.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quantlora.testing.models import tiny_llama, tiny_tokenizer


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is quantized and stored."""

    bits: int = 4
    group_size: int = 32
    desc_act: bool = False
    sym: bool = True
    v2: bool = False
    scales: torch.dtype = torch.float16
    bias: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("desc_act", "sym", "v2", "bias") if getattr(self, name)]
        return "-".join([f"{self.bits}bit", f"g{self.group_size}", *flags])


@dataclass(frozen=True)
class Packed:
    """One quantized weight: what is stored, and what it stands for."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    g_idx: Tensor
    recipe: Recipe

    def dense(self, dtype: torch.dtype) -> Tensor:
        """``(out, in)``, rounded once, in the dtype that a loader has put the scales in."""
        steps = (self.codes - self.zeros[:, self.g_idx]).to(dtype)
        return self.scales.to(dtype)[:, self.g_idx] * steps

    def buffers(self) -> dict[str, Tensor]:
        stored = self.zeros if self.recipe.v2 else self.zeros - 1
        return {
            "qweight": packed_rows(self.codes.t(), self.recipe.bits),
            "qzeros": packed_rows(stored, self.recipe.bits).t(),
            "scales": self.scales.t(),
            "g_idx": self.g_idx.to(torch.int32),
        }


def write_checkpoint(folder: Path, recipe: Recipe) -> dict[str, Packed]:
    """Write the model and its tokenizer; returns the quantized weights by path."""
    model = tiny_llama(
        hidden_size=128, intermediate_size=256, num_hidden_layers=1, attention_bias=recipe.bias
    )
    tensors, packed = dict(model.state_dict()), {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            packed[path] = quantized(tensors.pop(f"{path}.weight"), recipe)
            tensors |= {f"{path}.{name}": one for name, one in packed[path].buffers().items()}
    model.config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    _write_configs(folder, recipe)
    return packed


def quantized(weight: Tensor, recipe: Recipe) -> Packed:
    """``weight`` ``(out, in)`` rounded to nearest."""
    columns = weight.shape[1]
    size = columns if recipe.group_size == -1 else recipe.group_size
    g_idx = torch.arange(columns) // size
    if recipe.desc_act:
        g_idx = g_idx[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    scales, zeros = _grid(weight, g_idx, recipe)
    codes = (weight / scales[:, g_idx].float() + zeros[:, g_idx]).round()
    return Packed(codes.clamp(0, 2**recipe.bits - 1), zeros, scales, g_idx, recipe)


def packed_rows(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(n, columns)`` as int32 ``(n * bits // 32, columns)``: a stream of bits downwards."""
    values = codes.numpy().astype(np.uint8)
    stream = (values[:, None, :] >> np.arange(bits, dtype=np.uint8)[None, :, None]) & 1
    octets = np.packbits(stream.reshape(-1, values.shape[1]), axis=0, bitorder="little")
    words = octets.T.copy().view("<i4").T
    return torch.from_numpy(words.copy())


def _grid(weight: Tensor, g_idx: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Scales and zero-points ``(out, groups)``; zero-points from 1, which v1 can store."""
    groups = [weight[:, g_idx == g] for g in range(int(g_idx.max()) + 1)]
    low = torch.stack([g.amin(1) for g in groups], 1).clamp(max=0)
    high = torch.stack([g.amax(1) for g in groups], 1).clamp(min=0)
    top = 2**recipe.bits - 1
    if recipe.sym:
        scales = (2 * torch.maximum(high, -low) / top).to(recipe.scales)
        return scales, torch.full_like(low, (top + 1) // 2)
    scales = ((high - low) / (top - 1)).to(recipe.scales)
    return scales, (-low / scales.float()).round().clamp(1, top)


def _write_configs(folder: Path, recipe: Recipe) -> None:
    settings = {
        "quant_method": "gptq",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "desc_act": recipe.desc_act,
        "sym": recipe.sym,
        "checkpoint_format": "gptq_v2" if recipe.v2 else "gptq",
        "damp_percent": 0.01,
        "true_sequential": True,
        "lm_head": False,
        "meta": {"quantizer": ["gptqmodel:2.2.0"]},  # else it refuses v1 that is not symmetric
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "quantize_config.json").write_text(json.dumps(settings, indent=2))
