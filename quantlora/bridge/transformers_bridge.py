"""Showing a wrapped model to Transformers: the adapter methods, natively, without PEFT.

The methods sit in the instance's own ``__dict__``, in front of the class's, which would import
PEFT. The model's class stays what it was.
"""

from __future__ import annotations

from torch import nn

from quantlora.adapters.adapter_modules import adapter_modules, frozen_modules
from quantlora.adapters.state import adapter_state, set_state
from quantlora.bridge.adapter_method import SAVE, TRAINABLE_FLAG, AdapterMethod
from quantlora.bridge.adapter_names import accept_adapter_names
from quantlora.bridge.transformers_methods import METHODS, OF_TRANSFORMERS
from quantlora.bridge.trl_references import teach_trl
from quantlora.transformers_models import is_transformers_model


def attach(model: nn.Module) -> None:
    """Set what Trainer looks at, and put our adapter methods in front of the PEFT-calling ones."""
    teach_trl()
    if not is_transformers_model(model):
        _attach_saving(model)
        return
    vars(model)[TRAINABLE_FLAG] = True
    accept_adapter_names(model)
    for name, function in METHODS.items():
        if name != "generate" or hasattr(model, name):  # some models have nothing to say
            vars(model)[name] = AdapterMethod(function, model)


def attach_peft_methods(model: nn.Module) -> None:
    """Put adapter methods on a model that is none of Transformers', where it has none so named."""
    for name, function in METHODS.items():
        if name not in OF_TRANSFORMERS and not hasattr(model, name):
            vars(model)[name] = AdapterMethod(function, model)


def _attach_saving(model: nn.Module) -> None:
    """Let each Transformers model within ``model`` save its part of the adapters.

    So `SentenceTransformer.save` writes an adapter where it would write the whole model.
    """
    outer: nn.Module | None = None
    for _, part in frozen_modules(model):
        if not is_transformers_model(part) or (outer and part in set(outer.modules())):
            continue
        outer = part
        if any(adapter_modules(part)):
            set_state(part, adapter_state(model))
            vars(part)[SAVE] = AdapterMethod(METHODS[SAVE], part)
