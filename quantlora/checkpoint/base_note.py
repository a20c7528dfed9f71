"""The part of ``quantlora.json`` about a base that an initializer has changed.

    {"initializer": "pissa", "fits": "original" | "changed",
     "layers": {path: {"original": [...], "changed": [...], "r": 8}},
     "config": {"r": 8, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}}}

``layers`` has sketches of the weight before and after (`quantlora.layers.base_change`), and the
rank of the adapter over the changed base, whose settings are in ``config``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.checkpoint.conversion import changed_layers
from quantlora.checkpoint.keys import file_key
from quantlora.checkpoint.saved_adapter import SavedAdapter
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.errors import AdapterFileError, ConfigError, QuantloraError
from quantlora.formats.offloaded import read
from quantlora.layers.base_change import SKETCH, BaseChange, sketch
from quantlora.layers.experts import experts_layout
from quantlora.layers.layer import LoraLayer
from quantlora.names import plain_path
from quantlora.wrapping.expert_formats import parameters_format

_BASES = ("original", "changed")
_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
#: So many times nearer (squared) to one of the two bases than to the other: it is that one.
_CLEARLY = 4.0
#: So far (`_apart`) from both, it is neither. Packed in 2 bits, in groups of 128 and 256, the right
#: base is 0.2 to 0.7 away, and up to 0.84 as a mean of four layers; another base is 2 away, and no
#: less than 1.2 as a mean of four.
_STRANGE = 1.0
_TINY = 1e-300


def base_note(adapted: AdaptedModel, config: LoraConfig, adapter: str, converted: bool) -> Any:
    """The note for ``adapter``; None where its base is as it was."""
    changes = changed_layers(adapted, adapter)
    if not changes:
        return None
    return {
        "initializer": next(iter(changes.values()))[1].initializer,
        "fits": "original" if converted else "changed",
        "config": {name: getattr(config, name) for name in _FIELDS},
        "layers": {
            plain_path(path): {
                "original": change.original.tolist(),
                "changed": change.changed.tolist(),
                "r": layer.r[adapter],
            }
            for path, (layer, change) in changes.items()
        },
    }


def check_note(note: Any) -> None:
    """Raise `ValueError` where the note is not of the form above."""
    if note is None:
        return
    try:
        good = note["fits"] in ("original", "changed") and isinstance(note["initializer"], str)
        good &= all(name in note["config"] for name in _FIELDS)
        good &= all(_is_layer(layer) for layer in note["layers"].values())
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise ValueError("its base_change is no note of quantlora")


def _is_layer(layer: dict[str, Any]) -> bool:
    both = layer["original"], layer["changed"]
    numbers = all(
        type(number) is float and math.isfinite(number) for side in both for number in side
    )
    return numbers and type(layer["r"]) is int and all(len(side) == SKETCH for side in both)


def match_base(saved: SavedAdapter, model: nn.Module, source: str) -> SavedAdapter:
    """The adapter for the base that ``model`` has.

    Raises `AdapterFileError` where the file fits the changed base and ``model`` has the original.
    """
    note = saved.note.get("base_change")
    if not note:
        return saved
    found, distance = _which_base(note["layers"], model)
    if note["fits"] == "original":
        try:
            return _first_rows(saved, note) if found == "changed" else saved
        except (KeyError, IndexError, ConfigError) as error:
            raise AdapterFileError(
                f"{source}: quantlora.json and the adapter do not belong together: {error!r}. "
                f"Copy or save the folder again."
            ) from error
    if found == "original":
        raise AdapterFileError(
            f"{source}: the adapter was trained on a base that initializer "
            f"{note['initializer']!r} has changed, and this is the original one: its outputs would "
            f"be wrong. Load it on the base that was saved with it; or save it again, in the "
            f"session that trained it, with save_adapter(..., convert=True), which fits this one."
        )
    if distance > _STRANGE:
        raise AdapterFileError(
            f"{source}: the adapter was trained on a base that initializer "
            f"{note['initializer']!r} has changed, and this is neither that one nor the original "
            f"one: its layers have other weights, or random ones, as where a packed checkpoint "
            f"was loaded without its format. Load the base that was saved with the adapter, and "
            f"look at what from_pretrained says of its weights."
        )
    return saved


def remember(
    file: SavedAdapter,
    adapted: AdaptedModel,
    adapter: str,
    scales: Mapping[str, float] | None = None,
) -> None:
    """Note on the layers of ``adapter`` that their base is a changed one, for the next save.

    Args:
        scales: those of the file, by path, where the layers have others.
    """
    note = file.note.get("base_change")
    if not note or _which_base(note["layers"], adapted.model)[0] == "original":
        return
    for path, layer in adapted.lora_layers.items():
        facts = note["layers"].get(plain_path(path))
        if facts and adapter in layer.adapters and layer.base_change is None:
            sketches = (
                torch.tensor(facts[k], dtype=torch.float64) for k in ("original", "changed")
            )
            scale = (scales or {}).get(plain_path(path), layer.scaling[adapter])
            first = _first_values(file, plain_path(path), facts["r"], scale)
            layer.base_change = BaseChange(note["initializer"], adapter, first, *sketches)


def _first_values(
    file: SavedAdapter, path: str, r: int, scaling: float
) -> tuple[Tensor, Tensor] | None:
    """What a converted file takes away again, as in `BaseChange`."""
    A, B = (file.tensors.get(file_key(path, f"lora_{side}.weight")) for side in "AB")
    if A is None or B is None or len(A) <= r:
        return None
    return A[r:], -scaling * B[:, r:]


def _which_base(layers: dict[str, Any], model: nn.Module) -> tuple[str, float]:
    """``"original"``, ``"changed"``, or nothing where it cannot be told; how far it is from either.

    The second is `_apart`, a mean over the layers, to the nearer one.
    """
    to, apart, count = dict.fromkeys(_BASES, 0.0), dict.fromkeys(_BASES, 0.0), 0
    for path, module in frozen_modules(model):
        if plain_path(path) in layers and (weight := _weight(path, module)) is not None:
            now, facts, count = sketch(weight), layers[plain_path(path)], count + 1
            for name in _BASES:
                was = torch.tensor(facts[name], dtype=torch.float64)
                to[name] += _square(now - was) / max(_square(now), _TINY)
                apart[name] += _apart(now, was)
    nearer, other = sorted(to, key=lambda name: to[name])
    found = nearer if to[nearer] * _CLEARLY < to[other] else ""
    return found, apart[nearer] / max(count, 1)


def _apart(now: Tensor, was: Tensor) -> float:
    """``‖W - W'‖² / mean(‖W‖², ‖W'‖²)``: 2 for weights that have nothing to do with each other."""
    return 2 * _square(now - was) / max(_square(now) + _square(was), _TINY)


def _square(numbers: Tensor) -> float:
    return float(numbers.square().sum())


@torch.no_grad()
def _weight(path: str, module: nn.Module) -> Tensor | None:
    """The weight of the base at ``path``; None where it is not to be had."""
    if isinstance(module, LoraLayer):
        module, quantizer = module.plain_base
    elif experts_layout(module) is not None:
        quantizer = parameters_format(module)
    else:
        try:
            quantizer = registry().match(path, module)
        except QuantloraError:
            return None  # loading will say why
    if any(tensor.is_meta for tensor in module.parameters()) and not hasattr(module, "_hf_hook"):
        return None
    weight: Tensor = read(quantizer.dequantize, module)
    return weight if weight.ndim == 2 else None


def _first_rows(saved: SavedAdapter, note: dict[str, Any]) -> SavedAdapter:
    """A converted adapter without what makes up for the change."""
    tensors = dict(saved.tensors)
    for path, facts in note["layers"].items():
        A, B = (file_key(path, f"lora_{side}.weight") for side in "AB")
        tensors[A], tensors[B] = tensors[A][: facts["r"]], tensors[B][:, : facts["r"]]
    fields = {name: note["config"][name] for name in _FIELDS}
    return replace(saved, config=replace(saved.config, **fields), tensors=tensors)
