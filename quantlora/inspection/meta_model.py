"""A model of the right layers and shapes, without weights: on torch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from quantlora.errors import ConfigError
from quantlora.loading.pretrained import pretrained, resolve_model


def load_config(model: str) -> PretrainedConfig:
    """The config of a folder or hub id; code that comes with a model is never run.

    Raises:
        ConfigError: there is none, or Transformers cannot read it.
    """
    model_id_or_path = resolve_model(model)
    config: PretrainedConfig = pretrained(
        model_id_or_path,
        lambda: AutoConfig.from_pretrained(model_id_or_path, trust_remote_code=False),
    )
    return config


def build_meta_model(config: PretrainedConfig) -> nn.Module:
    """The model that ``config`` describes, float, in the checkpoint's dtype, on the meta device.

    Raises:
        ConfigError: Transformers has no such model, or needs the model's own code.
    """
    try:
        with torch.device("meta"):
            model = _build(config)
    except Exception as error:
        raise ConfigError(
            f"{config.model_type}: the model cannot be built from its config: {error}"
        ) from error
    return model.to(stored_dtype(config))


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The dtype of the checkpoint's float tensors; float32 where the config does not say."""
    found: Any = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    named = getattr(torch, str(found).removeprefix("torch."), None)
    return named if isinstance(named, torch.dtype) else torch.float32


def _build(config: PretrainedConfig) -> nn.Module:
    names = getattr(config, "architectures", None) or []
    classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    build: Callable[[PretrainedConfig], nn.Module] = [*classes, AutoModel.from_config][0]
    return build(config)
