"""The fields of `LoraConfig` as keywords of a function: for type checkers, editors and ``help``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from quantlora.config.lora_config import LoraConfig

if TYPE_CHECKING:
    F = TypeVar("F", bound=Callable[..., Any])


class LoraFields(TypedDict, total=False):
    """Each field of `LoraConfig` with its type; a test compares."""

    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    init_lora_weights: bool | str
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    use_dora: bool
    use_qalora: bool
    use_variant: str | None
    qalora_group_size: int | None
    loftq_config: Any
    eva_config: Any
    bias: str
    lora_bias: bool
    fan_in_fan_out: bool
    modules_to_save: list[str] | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | str | None
    target_parameters: list[str] | None
    target_experts: bool
    trainable_token_indices: list[int] | dict[str, list[int]] | None
    ensure_weight_tying: bool
    task_type: str | None
    peft_type: str
    base_model_name_or_path: str | None
    revision: str | None
    inference_mode: bool


def shows_fields(function: F) -> F:
    """Let the signature of ``function`` name every field in place of its ``**fields``."""
    signature = inspect.signature(function)
    given = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=field.type,
        )
        for field in dataclasses.fields(LoraConfig)
        if field.name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*given, *fields])  # type: ignore[attr-defined]
    return function


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
