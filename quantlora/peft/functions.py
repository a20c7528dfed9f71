"""PEFT's functions over ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.adapter_tensors import adapter_tensors
from quantlora.config.peft_config import PeftConfig
from quantlora.peft.config import LoraConfig
from quantlora.peft.model import get_peft_model
from quantlora.training.prepare import prepare

M = TypeVar("M", bound=nn.Module)


def prepare_model_for_kbit_training(
    model: M,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> M:
    """`quantlora.prepare` with what PEFT does: every half-precision parameter becomes float32.

    That costs the embeddings and the head twice their memory; ``quantlora.prepare(model)`` casts
    the norms alone.
    """
    prepare(
        model,
        upcast="all",
        gradient_checkpointing=use_gradient_checkpointing,
        gradient_checkpointing_kwargs=gradient_checkpointing_kwargs,
    )
    return model


def get_peft_config(config_dict: Mapping[str, Any]) -> LoraConfig:
    """A config from its fields by name."""
    return LoraConfig(**config_dict)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: M,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
) -> M:
    """`get_peft_model` with the arguments in the other order."""
    return get_peft_model(model, peft_config, adapter_name)


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
) -> dict[str, Tensor]:
    """The adapter's tensors by their keys in the file.

    Args:
        state_dict: take the values from here, by their names in ``model.state_dict()``.
    """
    return dict(adapter_tensors(AdaptedModel.of(model), adapter_name, state_dict))
