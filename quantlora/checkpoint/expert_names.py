"""Names of layers that PEFT takes for the experts' in a file, and so leaves without adapter.

Transformers 5 holds a mixture's experts as one parameter and reads older checkpoints by a table of
conversions. PEFT (0.19 to 0.21, ``transformers_weight_conversion.py``) applies it to the targets of
an adapter by their last name only, so dense layers and shared experts called alike get none. It
also doubles the rank of ``gate_up_proj`` then: a file with adapters on the experts too fails.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.errors import warn
from quantlora.layers.experts import LoraExperts
from quantlora.layers.parameters import LoraParameters
from quantlora.names import plain_path
from quantlora.transformers_models import is_transformers_model


def warn_of_expert_names(adapted: AdaptedModel, adapter: str) -> None:
    """Say which of ``adapter``'s layers PEFT would leave out when it loads the file."""
    taken = _expert_names(adapted.model)
    every = adapted.lora_layers.items()
    layers = {path: layer for path, layer in every if adapter in layer.adapters}
    experts = any(isinstance(layer, LoraExperts) for layer in layers.values())
    lost = [
        plain_path(path)
        for path, layer in layers.items()
        if not isinstance(layer, LoraParameters) and path.rsplit(".", 1)[-1] in taken
    ]
    what = "does not load the file for" if experts else "leaves out of it"
    if lost:
        warn(
            f"PEFT takes the names {', '.join(sorted(taken))} in this architecture for its "
            f"experts' and {what} {len(lost)} layers ({lost[0]} and so on): load it with "
            f"quantlora, or leave these layers out by exclude_modules."
        )


def _expert_names(model: nn.Module) -> set[str]:
    """Last names of the experts' layers in older checkpoints of this architecture."""
    if not is_transformers_model(model):
        return set()
    try:
        from transformers import conversion_mapping
    except ImportError:  # Transformers 4 has the layers themselves
        return set()
    config: Any = model.config
    mapping: Any = conversion_mapping
    if config.model_type not in {*mapping._MODEL_TO_CONVERSION_PATTERN, "mixtral"}:
        return set()  # PEFT converts no config of this type (Qwen2-MoE)
    found: list[Any] = mapping.get_checkpoint_conversion_mapping(config.model_type) or []
    sources = [pattern for entry in found for pattern in getattr(entry, "source_patterns", ())]
    return {_last(pattern) for pattern in sources if "experts.*." in pattern}


def _last(pattern: str) -> str:
    return pattern.removesuffix(".weight").rsplit(".", 1)[-1]
