"""A float model whose checkpoint is packed: Transformers dequantizes where it lacks a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from quantlora.discovery.registration import registry
from quantlora.transformers_models import is_transformers_model


def dequantized_notice(model: nn.Module) -> str:
    """What is to be said of a model that could have stayed packed; empty for all others.

    Transformers' quantizer leaves the model that it has dequantized; what it has read the tensors
    by is noted in the model and names the format.
    """
    if not is_transformers_model(model) or getattr(model, "hf_quantizer", None) is not None:
        return ""
    method = next((found for found in _dequantized_from(model) if found in registry().loaders), "")
    if not method:
        return ""
    return (
        f"the checkpoint is packed ({method}), and Transformers has dequantized it while it was "
        f"loaded, so all its weights are float now. Remedy: "
        f"quantlora.load({model.name_or_path!r}) keeps them packed; where dequantize=True was "
        f"asked for, nothing."
    )


def _dequantized_from(model: Any) -> Iterator[str]:
    """Transformers' names of the formats whose tensors were dequantized."""
    for conversion in vars(model).get("_weight_conversions") or ():
        for step in getattr(conversion, "operations", None) or ():
            reader = getattr(step, "hf_quantizer", None)
            config = getattr(reader, "quantization_config", None)
            if getattr(config, "dequantize", False):
                method = getattr(config, "quant_method", "")
                yield str(getattr(method, "value", method))
