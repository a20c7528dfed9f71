"""Every way in which this environment can load a GPTQ checkpoint."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

HAS_GPTQMODEL = find_spec("gptqmodel") is not None
HAS_AUTO_GPTQ = find_spec("auto_gptq") is not None
OLD_GPTQMODEL = HAS_GPTQMODEL and version("gptqmodel").startswith("2.")

needs_library = pytest.mark.skipif(
    not (HAS_GPTQMODEL or HAS_AUTO_GPTQ), reason="neither gptqmodel nor auto-gptq is installed"
)
needs_gptqmodel = pytest.mark.skipif(not HAS_GPTQMODEL, reason="gptqmodel is not installed")

#: Loader functions by name.
WAYS = ["transformers"] + ["gptqmodel"] * HAS_GPTQMODEL + ["auto_gptq"] * HAS_AUTO_GPTQ

#: Kernels for 4 bits that can be trained through; None is the loader's own choice.
KERNELS: list[str | None] = [None]
if HAS_GPTQMODEL:
    KERNELS += ["torch"] if OLD_GPTQMODEL else ["gptq_torch", "gptq_torch_aten", "gptq_torch_fused"]


def load(
    folder: Path,
    way: str = "transformers",
    kernel: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The Transformers model in ``folder``, on the CPU."""
    return {"transformers": _pretrained, "gptqmodel": _gptqmodel, "auto_gptq": _auto_gptq}[way](
        folder, kernel, dtype
    )


def _pretrained(folder: Path, kernel: str | None, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPTQConfig

    options: dict[str, Any] = {_dtype_name(): dtype, "device_map": "cpu"}
    if kernel is not None:
        options["quantization_config"] = GPTQConfig(bits=4, backend=kernel)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model


def _gptqmodel(folder: Path, kernel: str | None, dtype: torch.dtype) -> nn.Module:
    from gptqmodel import BACKEND, GPTQModel

    options: dict[str, Any] = {"torch_dtype" if OLD_GPTQMODEL else "dtype": dtype}
    backend = BACKEND(kernel or "auto")
    model: nn.Module = GPTQModel.load(str(folder), device="cpu", backend=backend, **options).model
    return model


def _auto_gptq(folder: Path, kernel: str | None, dtype: torch.dtype) -> nn.Module:
    from auto_gptq import AutoGPTQForCausalLM

    options: dict[str, Any] = {"device": "cpu", "use_safetensors": True, "torch_dtype": dtype}
    model: nn.Module = AutoGPTQForCausalLM.from_quantized(str(folder), **options).model
    return model


def _dtype_name() -> str:
    return "torch_dtype" if version("transformers").startswith("4.") else "dtype"


def library_weight(layer: Any) -> Tensor:
    """The weight ``(out, in)`` as the layer's own library dequantizes it."""
    if hasattr(layer, "dequantize_weight"):
        weight: Tensor = layer.dequantize_weight()
    else:
        weight = layer(torch.eye(layer.infeatures, dtype=layer.scales.dtype))
        weight = weight if layer.bias is None else weight - layer.bias
    return weight.t()


def tokens(seed: int = 0) -> Tensor:
    """A batch of two sequences of twelve tokens."""
    return torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(seed))
