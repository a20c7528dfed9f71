"""The float model: its shape without its weights, and its weights one at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlora import (
    ConfigError,
    LoraLayer,
    WeightFiles,
    folder_or_download,
    has_fused_experts,
    lora_layers,
    unmatched_patterns,
    wrap,
)
from quantlora_loftq.command.recipe import Recipe


@dataclass(frozen=True)
class LayerPlan:
    """One layer to quantize: ``key`` is its weight's in the files."""

    path: str
    key: str
    shape: tuple[int, int]
    bits: int
    r: int
    scaling: float
    use: LoraLayer

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


class Source:
    """The model of a recipe, on the meta device, wrapped as the result will be."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = folder_or_download(recipe.model)
        self.config: dict[str, Any] = _config(self.folder)
        self.files = WeightFiles(self.folder)
        self.model = _meta_model(self.folder, self.config)
        modules = self.model.named_modules()
        self.linears = {path: m for path, m in modules if isinstance(m, nn.Linear)}
        config = recipe.lora_config()
        config.exclude_modules = [*(recipe.exclude_modules or []), *_kept_float(self.model)]
        wrap(self.model, config)
        _check_experts(self.model)

    @cached_property
    def layers(self) -> list[LayerPlan]:
        """The largest first, so that processes which share them end together."""
        plans = [self._plan(path, layer) for path, layer in lora_layers(self.model)]
        paths = [plan.path for plan in plans]
        for pattern in unmatched_patterns(self.recipe.bits_pattern, paths):
            raise ConfigError(f"--bits-pattern {pattern!r} matches none of the layers.")
        return sorted(plans, key=lambda plan: -plan.size)

    def _plan(self, path: str, layer: LoraLayer) -> LayerPlan:
        shape = (layer.out_features, layer.in_features)
        (r,), (scaling,) = layer.r.values(), layer.scaling.values()
        bits = self.recipe.bits_for(path)
        return LayerPlan(path, self.files.key(path), shape, bits, r, scaling, layer)


def _check_experts(model: nn.Module) -> None:
    """Transformers has no packed form of fused experts that the result could be loaded with."""
    for path, layer in lora_layers(model):
        if has_fused_experts(layer.base_layer):
            raise ConfigError(
                f"{path}: quantlora loftq packs linear layers, and these are fused experts. "
                f"--exclude-modules experts leaves them float. To pack them, load the float model "
                f'and call quantlora.wrap(model, backend=..., init_lora_weights="loftq", '
                f"loftq_config=...); then save_adapter, unload and save_packed, in this order."
            )


def _kept_float(model: nn.Module) -> list[str]:
    """Names of layers that Transformers does not let any format pack, such as T5's ``wo``."""
    kept = [getattr(model, f"_keep_in_fp32_modules{s}", None) or [] for s in ("", "_strict")]
    return sorted({name for names in kept for name in names})


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{folder}: there is no config.json; is it a Transformers model?")
    config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    if config.get("quantization_config"):
        raise ConfigError(f"{folder}: the model is quantized already; LoftQ begins with floats.")
    return config


def _meta_model(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The class the files were saved from, without weights."""
    import transformers

    names = config.get("architectures") or ["(none)"]
    cls = getattr(transformers, names[0], None)
    if cls is None:
        raise ConfigError(
            f"{folder}/config.json: architectures names {names[0]}, which this Transformers "
            f"{transformers.__version__} does not have."
        )
    with torch.device("meta"):
        model: nn.Module = cls(transformers.AutoConfig.from_pretrained(folder))
    return model
