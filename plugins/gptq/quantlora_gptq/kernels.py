"""Which layers are GPTQ's, and which of their kernels can be trained through.

A layer is known by its library, its buffers and its method, never by the name of its class: those
have changed with almost every release.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from quantlora import BackendError
from quantlora_gptq.layout import BUFFERS, check_buffers, group_index, ignores_order
from quantlora_gptq.requires import REMEDY, library_of

#: AutoGPTQ's kernels that leave the buffers as the checkpoint has them, by their QUANT_TYPE.
_PLAIN_AUTO_GPTQ = ("cuda", "cuda-old", "triton")


def is_gptq(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer of either library, quantized by GPTQ.

    Kernels that have repacked or dropped their buffers are taken too: `check_kernel` says why
    they cannot be used, which "unknown layer" would not.
    """
    library = library_of(layer)
    if library is None or not (hasattr(layer, "out_features") or hasattr(layer, "outfeatures")):
        return False
    methods = getattr(layer, "SUPPORTS_METHODS", None)
    if methods is not None:
        return "gptq" in methods and getattr(layer, "SUPPORTS_BACKEND_SELECTION", True)
    return getattr(layer, "QUANT_TYPE", None) != "qqq" and all(hasattr(layer, b) for b in BUFFERS)


def check_kernel(layer: nn.Module, path: str) -> None:
    """Raise where ``layer`` cannot be trained through, naming kernel, path and remedy.

    Raises:
        BackendError: an inference-only or already locked kernel, or buffers that cannot be read.
    """
    library = library_of(layer)
    assert library is not None
    if why := _unusable(layer, library):
        kernel = f"{type(layer).__name__} ({getattr(layer, 'QUANT_TYPE', library)})"
        raise BackendError(f"{path}: the kernel {kernel} {why}")
    if why := _transforms_input(layer):
        raise BackendError(f"{path}: this layer is more than a matrix product: {why}.")
    check_buffers(layer, path)
    if ignores_order(layer) and group_index(layer) is not None:
        raise BackendError(
            f"{path}: AutoGPTQ's kernel for desc_act=False ignores g_idx, which is not in order "
            f"here, so its outputs are wrong. Set desc_act to true in the checkpoint's config."
        )


def _unusable(layer: nn.Module, library: str) -> str:
    if library == "auto_gptq":
        plain = getattr(layer, "QUANT_TYPE", None) in _PLAIN_AUTO_GPTQ
        return "" if plain else f"repacks its weight for inference. {REMEDY[library]}"
    if not getattr(layer, "SUPPORTS_TRAINING", False):
        return f"is for inference only. {REMEDY[library]}"
    if getattr(layer, "SUPPORTS_TRAINING_USE_TORCH_KERNEL", False):
        return f"swaps its zero-points between training and inference. {REMEDY[library]}"
    if _mode(layer) == "inference" or getattr(layer, "transformed", False):
        return (
            "has run without gradients and repacked its weight for inference: gradients would "
            "be wrong from here on. Load the model again and wrap it before its first forward, "
            'or load it with backend="gptq_torch", which never repacks.'
        )
    if getattr(layer, "planar", False):
        return "stores its codes in planes (format gptq_p), which is not supported."
    return ""


def _mode(layer: nn.Module) -> Any:
    mode = getattr(layer, "linear_mode", None)
    return getattr(mode, "value", mode)


def _transforms_input(layer: nn.Module) -> str:
    if getattr(layer, "adapter", None) is not None:
        return "GPTQModel has put an adapter of its own (EoRA) into it; load it without adapter="
    if getattr(layer, "online_full_had", False) or getattr(layer, "online_partial_had", False):
        return "its input is rotated online (QuaRot, SpinQuant), which is not supported"
    return ""


def keep_trainable(layer: nn.Module) -> None:
    """Close the way to the inference mode that some kernels take at their first forward."""
    if hasattr(layer, "linear_mode"):
        layer.linear_mode = "train"  # type: ignore[assignment]
