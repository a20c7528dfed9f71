"""The ``config.json`` of an export: what became of quantization and of tied weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules, plain_module
from quantlora.discovery.registration import registry
from quantlora.errors import MergeError
from quantlora.exporting.export_tensors import MergedTensors, both_ends
from quantlora.formats.quantizer import FLOAT
from quantlora.layers.layer import LoraLayer
from quantlora.merging.tied import untie
from quantlora.transformers_models import is_transformers_model

MODES = ("dequantize", "requantize", "exact")


def check_mode(adapted: AdaptedModel, names: tuple[str, ...], mode: str) -> None:
    """Raise `MergeError` for an unknown mode, or where config.json could not tell the format."""
    if mode not in MODES:
        raise MergeError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    model, layers = adapted.model, adapted.lora_layers.items()
    formats = {path: layer.plain_base[1].name for path, layer in layers}
    packed = {path: name for path, name in formats.items() if name != FLOAT}
    if mode == "exact" and is_transformers_model(model):
        _check_all_adapted(adapted, names)
    kept = getattr(getattr(model, "config", None), "quantization_config", None)
    if mode == "requantize" and packed and is_transformers_model(model) and kept is None:
        path, name = next(iter(packed.items()))
        raise MergeError(
            f"{path} is in format {name!r}, but the model's config has no quantization_config that "
            f"could say so in config.json, and nobody could load the export. Use "
            f'mode="dequantize".'
        )


def _check_all_adapted(adapted: AdaptedModel, names: tuple[str, ...]) -> None:
    """An exact merge changes the format, and config.json can name one format only."""
    layers = [layer for layer in adapted.lora_layers.values() if {*names} & {*layer.adapters}]
    bases = {id(layer.plain_base[0]) for layer in layers}
    for path, module in frozen_modules(adapted.model):
        if (
            id(module) not in bases
            and not isinstance(module, LoraLayer)
            and registry().packed_format(module)
        ):
            raise MergeError(
                f"{path} is packed and none of these adapters is on it, so an exact merge would "
                f"leave two formats, and config.json can name one: train with "
                f'target_modules="all-linear".'
            )


def write_config(folder: Path, source: MergedTensors, written: set[str]) -> None:
    """Write config.json, and generation_config.json where the model has one.

    Args:
        written: names of the tensors that are in the export.
    """
    model: Any = source.model
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", source.dtype)
    if source.mode == "dequantize" and hasattr(config, "quantization_config"):
        del config.quantization_config
        # Transformers 4 notes it as a torch.dtype, and only beside a quantization_config drops it.
        vars(config).pop("_pre_quantization_dtype", None)
    if source.mode == "exact":
        config.quantization_config = _quantization(source)
    if both_ends(model, written):
        untie(config)
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def _quantization(source: MergedTensors) -> dict[str, Any]:
    """What config.json says of the layers that were packed anew."""
    layers = {path: layer for path, (layer, _) in source.repacked.items()}
    path, (_, quantizer) = next(iter(source.repacked.items()))
    found = quantizer.checkpoint_config(layers, {**_float_linears(source.adapted), **layers})
    if found is None:
        raise MergeError(
            f"{path}: Transformers cannot load format {quantizer.name!r}, so nobody could load the "
            f'export. Use mode="dequantize".'
        )
    return found


def _float_linears(adapted: AdaptedModel) -> dict[str, nn.Module]:
    others = {p: m for p, m in adapted.modules.items() if not isinstance(m, LoraLayer)}
    plain = {path: plain_module(module)[0] for path, module in others.items()}
    return {path: module for path, module in plain.items() if isinstance(module, nn.Linear)}
