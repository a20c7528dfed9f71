"""A float model whose checkpoint is packed: Transformers dequantizes where it lacks a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from quantlora.discovery.registration import registry
from quantlora.transformers_models import is_transformers_model


def dequantized_notice(model: nn.Module) -> str:
    """What is to be said of a model that could have stayed packed; empty for all others.

    Of most formats Transformers' quantizer leaves the model that it has dequantized; what it has
    read the tensors by is noted in the model and names the format.
    """
    if not is_transformers_model(model):
        return ""
    settings = next(filter(_has_loader, _dequantized_by(model)), None)
    if settings is None:
        return ""
    file = getattr(settings, "gguf_file", None)
    source = repr(model.name_or_path) + (f", gguf_file={file!r}" if file else "")
    return (
        f"the checkpoint is packed ({_method(settings)}), and Transformers has dequantized it "
        f"while it was loaded, so all its weights are float now. Remedy: quantlora.load({source}) "
        f"keeps them packed; where dequantize=True was asked for, nothing."
    )


def _dequantized_by(model: Any) -> Iterator[Any]:
    """The ``quantization_config`` of what has dequantized the model."""
    for reader in _readers(model):
        settings = getattr(reader, "quantization_config", None)
        by_old_loader = not getattr(reader, "supported", True)  # of files, which only dequantizes
        if by_old_loader or getattr(settings, "dequantize", False):
            yield settings


def _readers(model: Any) -> Iterator[Any]:
    """Transformers' quantizers that the model's tensors were read by."""
    if (kept := getattr(model, "hf_quantizer", None)) is not None:
        yield kept
    for conversion in vars(model).get("_weight_conversions") or ():
        for step in getattr(conversion, "operations", None) or ():
            if (reader := getattr(step, "hf_quantizer", None)) is not None:
                yield reader


def _has_loader(settings: Any) -> bool:
    return _method(settings) in registry().loaders


def _method(settings: Any) -> str:
    method = getattr(settings, "quant_method", "")
    return str(getattr(method, "value", method))
