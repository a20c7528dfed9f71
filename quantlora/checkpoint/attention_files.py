"""Adapters on `nn.MultiheadAttention` in files: where PEFT computes otherwise, it is said."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from packaging.version import InvalidVersion, Version

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.errors import warn
from quantlora.formats.attention import OUT_PROJ, is_attention
from quantlora.layers.parameters import LoraParameters, picked_parameters
from quantlora.names import outer_path, plain_path

#: The last PEFT whose ``out_proj`` was measured to count twice in a whole attention.
_MEASURED = (0, 21)


def warn_of_later_peft(source: str, adapted: AdaptedModel, adapter: str, peft_version: str) -> None:
    """Say that a later PEFT may have trained an attention's ``out_proj`` to count once."""
    whole = next(_whole(adapted, adapter), None)
    if whole is not None and _release(peft_version) > _MEASURED:
        last = ".".join(map(str, _MEASURED))
        warn(
            f"{source}: PEFT {peft_version} has written it, and up to {last} the update of "
            f"{whole}.{OUT_PROJ} counts twice, as it does here. Compare the outputs with PEFT's; "
            f"where it counts once there, halve {whole}.{OUT_PROJ}'s lora_B."
        )


def warn_of_lone_out_proj(adapted: AdaptedModel, adapter: str, trained: bool = False) -> None:
    """Say which layers of ``adapter`` have no effect in PEFT, whoever wrote the file.

    Args:
        trained: only of those whose B is not zero: in a file of PEFT's the others are as they were.
    """
    whole = set(_whole(adapted, adapter))
    parent = adapted.model.get_submodule
    lone = [
        outer_path(plain_path(path))
        for path, layer in adapted.lora_layers.items()
        if adapter in layer.adapters and not isinstance(layer, LoraParameters)
        if (around := path.rpartition(".")[0]) and is_attention(parent(around))
        if around.removesuffix(".base_layer") not in whole
        if adapter in layer.lora_B
        if not trained or any(map(torch.any, layer.lora_B[adapter].parameters()))
    ]
    if lone:
        warn(
            f"PEFT gives {lone[0]} an adapter that its attention never calls, so it has no effect "
            f"there: name the whole nn.MultiheadAttention in target_modules for both."
        )


def _whole(adapted: AdaptedModel, adapter: str) -> Iterator[str]:
    """The attentions that are targets of ``adapter`` as a whole, by path in the wrapped model."""
    for path, layer in adapted.lora_layers.items():
        if isinstance(layer, LoraParameters) and adapter in layer.adapters:
            config = adapted.state.known(adapter)
            picked = picked_parameters(layer.path, layer.shapes, config)
            if is_attention(layer.base_layer) and not picked:
                yield path


def _release(version: str) -> tuple[int, ...]:
    try:
        return Version(version.partition("@")[0]).release[:2]
    except InvalidVersion:
        return ()
