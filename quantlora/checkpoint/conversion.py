"""An adapter over a changed base, as plain LoRA that fits the base from before the change.

An initializer that moves a part ``B₀ · A₀`` of the weight into the adapter leaves the base W' with
``W ≈ W' + B₀ · A₀``. So ``W' + s · B · A ≈ W + s · [B | -B₀/s] · [A ; A₀]``: an adapter of the rank
of both (PEFT's conversion of PiSSA and OLoRA). Its first rows are the adapter over W'.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.packed_config import writable_base
from quantlora.checkpoint.keys import file_key, file_path
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import as_pattern
from quantlora.errors import AdapterFileError, AdapterWarning
from quantlora.layers.base_change import BaseChange
from quantlora.layers.layer import LoraLayer
from quantlora.transformers_models import is_transformers_model

#: Relative error of the weight up to which a converted adapter is as good: rounding of bfloat16.
_SMALL = 0.01
#: From here on the first values do not make up for the change at all.
_LARGE = 0.5


def changed_layers(adapted: AdaptedModel, adapter: str) -> dict[str, tuple[LoraLayer, BaseChange]]:
    """The layers of ``adapter`` whose base an initializer has changed, by path."""
    return {
        path: (layer, layer.base_change)
        for path, layer in adapted.lora_layers.items()
        if adapter in layer.adapters and layer.base_change is not None
    }


def is_converted(adapted: AdaptedModel, adapter: str, asked: bool | None) -> bool:
    """Whether the file is to fit the original base. ``asked`` None: where that loses nothing."""
    changes = changed_layers(adapted, adapter)
    if not changes or asked is False:
        return False
    path, (layer, change) = max(changes.items(), key=lambda item: _worst(item[1][1]))
    gap = f"{change.gap:.1%}"
    impossible = change.factors is None or change.gap >= _LARGE or not layer.scaling[adapter]
    if impossible and asked:
        raise AdapterFileError(
            f"{path}: the adapter cannot be converted: {change.initializer!r} has changed the base "
            f"by more than the first A and B make up for ({gap} of the weight). Save it with "
            f"convert=False, and the base with it."
        )
    if impossible or (change.gap > _SMALL and asked is None):
        _warn(
            f"{path}: {change.initializer!r} has changed the base, and converted the adapter would "
            f"be off by {gap} of the weight: the file fits the changed base and no other. "
            f"{_remedy(adapted.model)}, or give convert=True and evaluate the result. "
            f"convert=False saves without this warning."
        )
        return False
    if change.gap > _SMALL:
        _warn(f"{path}: converted, the adapter is off by {gap} of the weight: evaluate it.")
    return True


def _worst(change: BaseChange) -> tuple[bool, float]:
    """What cannot be made up for counts before any gap."""
    return change.factors is None, change.gap


def _remedy(model: nn.Module) -> str:
    """How the changed base is kept."""
    if not is_transformers_model(model):
        return "Save that too (quantlora.unload, then its state_dict)"
    if writable_base(model):
        return "Save that too (quantlora.unload, then model.save_pretrained)"
    return (
        "No checkpoint of Transformers holds that base: save base and adapter as one "
        "(quantlora.export_merged)"
    )


def _warn(message: str) -> None:
    warnings.warn(message, AdapterWarning, stacklevel=6)


def converted_config(adapted: AdaptedModel, config: LoraConfig, adapter: str) -> LoraConfig:
    """``config`` with the ranks of the converted adapter, and alphas that keep the scaling."""
    changes = changed_layers(adapted, adapter)
    ranks, alphas = {}, {}
    for path, layer in adapted.lora_layers.items():
        if adapter in layer.adapters:
            r, alpha = layer.r[adapter], layer.lora_alpha[adapter] * layer.alpha_factor(adapter)
            ranks[path] = r + (_rank(changes[path][1]) if path in changes else 0)
            grown = ranks[path] / r
            alphas[path] = alpha * (math.sqrt(grown) if config.use_rslora else grown)
    (r, rank_pattern), (alpha, alpha_pattern) = as_pattern(ranks), as_pattern(alphas)
    changed: dict[str, Any] = {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    return replace(config, r=r, lora_alpha=alpha, **changed)


def add_first_values(adapted: AdaptedModel, adapter: str, tensors: dict[str, Tensor]) -> None:
    """Put A₀ and B₀ into ``tensors``, an adapter's by their keys in the file."""
    for path, (layer, change) in changed_layers(adapted, adapter).items():
        assert change.factors is not None
        A, B = (
            file_key(file_path(adapted.model, path, adapter), f"lora_{side}.weight")
            for side in "AB"
        )
        first_A, first_B = (factor.to(tensors[A]) for factor in change.factors)
        tensors[A] = torch.cat([tensors[A], first_A])
        tensors[B] = torch.cat([tensors[B], -first_B / layer.scaling[adapter]], 1)


def written_init(adapted: AdaptedModel, adapter: str) -> bool | str:
    """What a file for a changed base says in ``init_lora_weights``.

    PEFT takes the same part out of the original base by a name it knows, and stops at another. A
    name with a number ("pissa_niter_4") is a random search's, which finds another part each time;
    of OLoRA's part PEFT takes out as much as the scaling says, we take it once.
    """
    changes = changed_layers(adapted, adapter).values()
    for _, change in changes:
        once = change.initializer == "olora" and any(a.scaling[adapter] != 1 for a, _ in changes)
        random = any(map(str.isdigit, change.initializer))
        found_again = change.adapter == adapter and not random and not once
        return change.initializer if found_again else f"{change.initializer} of {change.adapter}"
    return True


def _rank(change: BaseChange) -> int:
    return 0 if change.factors is None else change.factors[0].shape[0]
