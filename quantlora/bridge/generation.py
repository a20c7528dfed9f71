"""``model.generate(..., adapter_names=[...])``: text from a mixed batch, as in PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from quantlora.adapters.mixed_batch import mixed_batch


def generate(
    model: nn.Module, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
) -> Any:
    """As the class's own; prompt i goes through ``adapter_names[i]``.

    Beams, and several sequences for one prompt, go through the adapter of their prompt.
    """
    own: Any = type(model)
    if adapter_names is None:
        return own.generate(model, *args, **kwargs)
    names = [name for name in adapter_names for _ in range(_copies(model, args, kwargs))]
    with mixed_batch(model, names):
        return own.generate(model, *args, **kwargs)


def _copies(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the batch for each prompt, by the settings that Transformers will find."""
    given = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
    configs = [one for one in (given, model.generation_config) if one is not None]

    def setting(name: str) -> int:
        values = (getattr(config, name, None) for config in configs)
        return kwargs.get(name) or next((value for value in values if value), 1)

    return max(setting("num_beams"), setting("num_return_sequences"))
