"""From finished layers to the result: the backbone's shards, the adapter, what goes with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantlora import (
    ConfigError,
    Quantizer,
    TensorFile,
    TensorSource,
    save_adapter,
    shard_files,
    write_set,
)
from quantlora_loftq.command.layer_work import BASE, FACTS, LayerFacts, quantize
from quantlora_loftq.command.parts import Parts
from quantlora_loftq.command.report import report_files
from quantlora_loftq.command.source import LayerPlan, Source

Writer = Callable[[Path], object]

ADAPTER = "loftq_init"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def assemble(source: Source, config: dict[str, Any], parts: Parts, out: Path, limit: str) -> None:
    """Write the result into ``out``; its config last, so that a half result does not load."""
    _save_adapter(source, parts, out)
    text = json.dumps({**source.config, **config}, indent=2, sort_keys=True) + "\n"
    files = shard_files(_backbone(source, parts), shard_bytes(limit))
    files |= report_files(source.recipe, [_facts(parts, plan) for plan in source.layers])
    files |= _others(source.folder)
    write_set(out, files | {"config.json": lambda file: file.write_text(text)})


def _backbone(source: Source, parts: Parts) -> Iterator[tuple[str, TensorSource]]:
    """The source's tensors in order of their keys, the packed layers in place of their weights."""
    packed = {plan.key: plan for plan in source.layers}
    for key in sorted(source.files.file_of):
        if key in packed:
            yield from _packed(parts, packed[key])
        else:
            yield key, _tensor(source.files.opened(key), key)


def _packed(parts: Parts, plan: LayerPlan) -> Iterator[tuple[str, TensorSource]]:
    opened = parts.open(plan.path)
    for name in sorted(opened.keys):
        if name.startswith(BASE):
            key = plan.key.removesuffix("weight") + name.removeprefix(BASE)
            yield key, _tensor(opened, name)


def _tensor(opened: TensorFile, name: str) -> TensorSource:
    return TensorSource(opened.shape(name), opened.dtype(name), lambda: opened.tensor(name))


def _save_adapter(source: Source, parts: Parts, out: Path) -> None:
    values: dict[str, Tensor] = {}
    for plan in source.layers:
        opened = parts.open(plan.path)
        for side in ("lora_A", "lora_B"):
            values[f"{plan.path}.{side}.default.weight"] = opened.tensor(side)
    vars(source.model)["name_or_path"] = str(out.resolve())
    save_adapter(source.model, out / ADAPTER, state_dict=values, save_embedding_layers=False)


def _facts(parts: Parts, plan: LayerPlan) -> LayerFacts:
    return LayerFacts(**json.loads(parts.open(plan.path).metadata[FACTS]))


def checkpoint_config(source: Source, quantizer: Quantizer) -> dict[str, Any]:
    """What the result's config says beside the source's; an error where it could not be loaded.

    The meta_model's layers are packed from here on, for the adapter's notes about its base.
    """
    if source.recipe.fake:
        return {}
    example = torch.ones(64, 64)  # the settings count, not the weight
    layers = {plan.path: quantize(quantizer, example, plan.bits) for plan in source.layers}
    config = quantizer.checkpoint_config(layers, source.linears)
    if config is None:
        raise ConfigError(
            f"backend {quantizer.name!r} has no form that Transformers can load: use --fake for "
            f"dense weights, or another --backend."
        )
    for plan in source.layers:
        plan.use.base_layer, plan.use.quantizer = layers[plan.path], quantizer
    return {"quantization_config": config}


def _others(folder: Path) -> dict[str, Writer]:
    """The tokenizer and whatever else is small and beside the weights."""
    return {
        file.name: partial(shutil.copyfile, file)
        for file in folder.iterdir()
        if file.suffix in (".json", ".model", ".txt", ".jinja")
        if file.name != "config.json" and "safetensors" not in file.name
    }


def shard_bytes(text: str) -> int:
    """``"5GB"`` as bytes, with decimal units as Transformers has them."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        raise ConfigError(f"--max-shard-size must be like 5GB or 200MB, got {text!r}.")
    return int(float(number) * _UNITS[unit])
