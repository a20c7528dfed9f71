"""PEFT's ways to a model with an adapter. What comes back is the model that went in."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from torch import nn

from quantlora.adapters.adapter_modules import adapter_modules
from quantlora.bridge.transformers_bridge import attach_peft_methods
from quantlora.config.peft_config import PeftConfig
from quantlora.errors import ConfigError
from quantlora.wrapped_model import load_adapter, wrap

M = TypeVar("M", bound=nn.Module)


def get_peft_model(
    model: M,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
    *,
    backend: str = "auto",
) -> M:
    """`quantlora.wrap`, in place: the same object, with PEFT's method names on it.

    Args:
        mixed: adapters of several methods on one model; refused, for there is LoRA only.
        revision: of the base, for the adapter's file.
        low_cpu_mem_usage: without effect: nothing is made twice.
        backend: ours, as in `wrap`.
    """
    if mixed:
        raise ConfigError("mixed=True combines methods, and quantlora does LORA only: use PEFT.")
    if revision is not None:
        setattr(peft_config, "revision", revision)  # noqa: B010  (a protocol has no such field)
    wrap(
        model,
        peft_config,
        backend=backend,
        adapter_name=adapter_name,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )
    attach_peft_methods(model)
    return model


class _HasAdapters(type):
    """``isinstance(model, PeftModel)`` asks for adapters of quantlora's."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, nn.Module) and any(adapter_modules(instance))


class PeftModel(metaclass=_HasAdapters):
    """PEFT's name for a model with adapters: ``PeftModel.from_pretrained(model, folder)``."""

    def __new__(cls, model: M, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> M:  # type: ignore[misc]
        return get_peft_model(model, peft_config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        model: M,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        *,
        backend: str = "auto",
        **kwargs: Any,
    ) -> M:
        """`quantlora.load_adapter`, in place.

        Args:
            config: must be None: the adapter's file says what it is.
            ephemeral_gpu_offload, low_cpu_mem_usage: without effect.
            kwargs: ``revision``, ``token``, ``key_mapping``.
        """
        if config is not None or ephemeral_gpu_offload:
            what = "config" if config is not None else "ephemeral_gpu_offload"
            raise ConfigError(f"PeftModel.from_pretrained takes no {what} here: leave it out.")
        load_adapter(
            model,
            model_id,
            adapter_name,
            is_trainable=is_trainable,
            backend=backend,
            autocast_adapter_dtype=autocast_adapter_dtype,
            **kwargs,
        )
        attach_peft_methods(model)
        return model


#: PEFT's classes by task; the head of a task is known by the config's ``task_type``.
PeftModelForCausalLM = PeftModel
PeftModelForFeatureExtraction = PeftModel
PeftModelForQuestionAnswering = PeftModel
PeftModelForSeq2SeqLM = PeftModel
PeftModelForSequenceClassification = PeftModel
PeftModelForTokenClassification = PeftModel
