"""What a Transformers model's config says of its packed layers, once its adapters are gone.

``save_pretrained`` writes packed tensors whatever the config says, and ``from_pretrained`` takes
them for packed only where ``quantization_config`` says so: without it the layers are random.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from quantlora.discovery.registration import registry
from quantlora.errors import BackendError, warn
from quantlora.formats.expert_stack import ExpertStack
from quantlora.formats.quantizer import Quantizer
from quantlora.transformers_models import is_transformers_model


def note_packed(model: nn.Module) -> None:
    """Let ``model.config`` say what is packed; no more than that where `from_pretrained` packed it.

    Where Transformers cannot load the format, an `AdapterWarning` says so.
    """
    if not is_transformers_model(model):
        return
    loaded: Any = model
    packed, experts = _packed_layers(model), _packed_experts(model)
    if experts and packed:
        _warn(packed, "the checkpoint's experts are packed too, and config.json names one format.")
    elif experts:
        return
    elif not packed:
        _forget(loaded)
    elif getattr(model, "hf_quantizer", None) is None:
        found, why = _checkpoint_config(loaded, packed)
        if found is not None:
            loaded.config.quantization_config = found
        elif getattr(loaded.config, "quantization_config", None) is None:
            _warn(packed, why)


def _warn(packed: Mapping[str, object], why: str) -> None:
    warn(
        f"{next(iter(packed))} and others stay packed, and model.save_pretrained would "
        f"write them so that nobody could load them again: {why} To save the model, call "
        f"quantlora.export_merged while its adapters are on."
    )


def writable_base(model: nn.Module) -> bool:
    """Whether the base of ``model``, of Transformers, can be saved and loaded again."""
    packed = _packed_layers(model)
    if not packed or getattr(model, "hf_quantizer", None) is not None:
        return True
    return _checkpoint_config(model, packed)[0] is not None


def _packed_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Quantizer]]:
    """The packed layers by the paths that they have, or will have without adapters."""
    return {
        path.removesuffix(".base_layer"): (module, quantizer)
        for path, module in model.named_modules()
        if (quantizer := registry().packed_format(module)) is not None
    }


def _packed_experts(model: nn.Module) -> bool:
    """Whether the model has stacks of experts that its checkpoint has packed."""
    return any(isinstance(m, ExpertStack) and m.in_checkpoints for m in model.modules())


def _checkpoint_config(
    model: Any, packed: Mapping[str, tuple[nn.Module, Quantizer]]
) -> tuple[dict[str, Any] | None, str]:
    """Transformers' ``quantization_config``, or None and why there is none."""
    quantizers = {quantizer.name: quantizer for _, quantizer in packed.values()}
    if len(quantizers) > 1:
        return None, f"they are in several formats ({', '.join(quantizers)})."
    (quantizer,) = quantizers.values()
    linears = _float_linears(model)
    for path in packed:
        if path not in linears:
            return None, f"{path} is no nn.Linear in the float model."
    try:
        found = quantizer.checkpoint_config({p: layer for p, (layer, _) in packed.items()}, linears)
    except BackendError as error:
        return None, str(error)
    return found, f"Transformers has no way to load format {quantizer.name!r}."


def _float_linears(model: Any) -> dict[str, nn.Module]:
    """The linear layers of the float model that the config describes, without weights."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    try:
        with torch.device("meta"):
            plain = type(model)(config)
    except Exception:  # a model's own code: whatever it raises, the answer is that nobody knows
        return {}
    return {path: module for path, module in plain.named_modules() if isinstance(module, nn.Linear)}


def _forget(model: Any) -> None:
    """The model is float: as Transformers' own ``dequantize`` leaves it, and it can be saved."""
    for owner, names in (
        (model.config, ("quantization_config", "_pre_quantization_dtype")),
        (model, ("hf_quantizer", "quantization_method")),
    ):
        for name in names:
            vars(owner).pop(name, None)
    conversions = vars(model).get("_weight_conversions")
    if conversions:  # what has read packed tensors cannot be reversed
        model._weight_conversions = [
            conversion for conversion in conversions if not _reads_packed(conversion)
        ]


def _reads_packed(conversion: Any) -> bool:
    steps = getattr(conversion, "operations", None) or ()
    return any(hasattr(step, "hf_quantizer") for step in steps)
