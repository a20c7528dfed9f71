"""``model.generate(..., adapter_names=[...])``: text from a mixed batch, as in PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from quantlora.adapters.mixed_batch import mixed_batch
from quantlora.errors import AdapterError


def generate(
    model: nn.Module, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
) -> Any:
    """As the class's own; prompt i goes through ``adapter_names[i]``.

    Beams, and several sequences for one prompt, go through the adapter of their prompt.
    """
    kind: Any = type(model)
    if adapter_names is None:
        return kind.generate(model, *args, **kwargs)
    copies = _copies(model, args, kwargs)
    _check_order(model, copies, kwargs)
    with mixed_batch(model, adapter_names, copies=copies):
        return kind.generate(model, *args, **kwargs)


def _check_order(model: nn.Module, copies: int, kwargs: dict[str, Any]) -> None:
    """Only Transformers' own generation is known to keep the copies of a prompt in a row."""
    custom = next(
        (option for option in ("custom_generate", "penalty_alpha") if kwargs.get(option)), None
    )
    if custom is not None:
        raise AdapterError(
            f"generate({custom}=...) orders the batch its own way: generate without "
            f"adapter_names, adapter by adapter, with set_adapter."
        )
    kind: Any = type(model)
    if copies > 1 and kind.generate.__qualname__ != "GenerationMixin.generate":
        raise AdapterError(
            f"{type(model).__name__} has a generate of its own, and may order beams and repeats "
            f"its own way: with adapter_names, use num_beams=1 and num_return_sequences=1."
        )


def _copies(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the batch for each prompt, by the settings that Transformers will find."""
    given = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
    configs = [config for config in (given, model.generation_config) if config is not None]

    def setting(name: str) -> int:
        values = (getattr(config, name, None) for config in configs)
        return kwargs.get(name) or next((value for value in values if value), 1)

    return max(setting("num_beams"), setting("num_return_sequences"))
