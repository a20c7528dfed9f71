"""A config of PEFT's as ours. It is known by its fields: PEFT need not be here.

Each field is one of ours, or without effect, or refused by its name: nothing that was asked for is
left out without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Protocol

from quantlora.config.lora_config import LoraConfig
from quantlora.config.usual_targets import usual_targets
from quantlora.errors import ConfigError

#: Notes of PEFT's, and a setting that means nothing without another one.
_NOTES = ("auto_mapping", "megatron_core", "peft_version")
#: Settings that change what an adapter computes, in a way quantlora does not have.
UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication",
    "monteclora_config", "use_bdlora",
)  # fmt: skip
#: Values of a field that asks for nothing.
_NOTHING: tuple[Any, ...] = (None, False, {}, [], "")


class PeftConfig(Protocol):
    """What is read of a config of PEFT's."""

    peft_type: Any

    def to_dict(self) -> dict[str, Any]:
        """Its fields by name."""


def is_peft_config(config: object) -> bool:
    """Whether it is a config of PEFT's, the object or the content of ``adapter_config.json``."""
    if isinstance(config, Mapping):
        return "peft_type" in config
    return hasattr(config, "peft_type") and callable(getattr(config, "to_dict", None))


def peft_fields(config: Any) -> dict[str, Any]:
    """Its fields in plain types: sets are sorted lists, members of an enum their values."""
    fields = dict(config) if isinstance(config, Mapping) else dict(config.to_dict())
    runtime = getattr(config, "runtime_config", None)  # which to_dict leaves out
    if dataclasses.is_dataclass(runtime) and not isinstance(runtime, type):
        fields |= dataclasses.asdict(runtime)
    return {name: _plain(value) for name, value in fields.items()}


def split_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is given of our fields, and of the others; null is a default but for numbers."""
    names = {field.name for field in dataclasses.fields(LoraConfig)}
    numbers = ("r", "lora_alpha", "lora_dropout")
    ours = {n: v for n, v in fields.items() if n in names and (v is not None or n in numbers)}
    others = {n: v for n, v in fields.items() if n not in names and v not in _NOTHING}
    return ours, others


def from_peft(config: Any, model_type: str | None) -> LoraConfig:
    """Our config for a fresh adapter, from one of PEFT's.

    Args:
        config: the object, or its fields by name.
        model_type: that of the model's config, by which PEFT chooses targets where none are named.

    Raises:
        ConfigError: it is for another method, asks for what quantlora does not have, or a field
            has the wrong type.
    """
    fields = peft_fields(config)
    if fields.get("peft_type") != "LORA":
        raise ConfigError(
            f"the config is for {fields.get('peft_type')}: quantlora does LORA only. Use PEFT for "
            f"other methods."
        )
    ours, others = split_fields(fields)
    if asked := sorted(name for name in others if name not in _NOTES):
        raise ConfigError(
            f"the config sets {', '.join(asked)}, which quantlora does not have: leave it out, or "
            f"use PEFT for it."
        )
    if not ours.get("use_qalora"):
        ours.pop("qalora_group_size", None)  # PEFT has a default for it, without effect
    for name in ("loftq_config", "eva_config"):
        ours[name] = ours.get(name) or None
    if ours.get("target_modules") is None:
        ours["target_modules"] = usual_targets(model_type)
    ours["target_experts"] = False  # of PEFT's "all-linear" they are no part
    return LoraConfig(**ours)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset, tuple)):
        return _listed(value)
    return value


def _listed(values: Iterable[Any]) -> list[Any]:
    return list(values) if isinstance(values, tuple) else sorted(values)
