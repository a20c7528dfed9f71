"""Showing a wrapped model to Transformers: the adapter methods, natively, without PEFT.

The methods sit in the instance's own ``__dict__``, in front of the class's, which would import
PEFT. The model's class stays what it was.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from quantlora.bridge.adapter_names import accept_adapter_names, refuse_adapter_names
from quantlora.errors import AdapterError

#: What Trainer looks at before it trains a quantized model.
_FLAG = "_hf_peft_config_loaded"
#: Where Transformers remembers ``enable_peft_hotswap``.
HOTSWAP_FLAG = "_hotswap_enabled"


class AdapterMethod:
    """``function`` bound to ``model``, as a method is, but without holding the model.

    A reference back to the model would be a cycle, and its memory would not be free before the
    next garbage collection. ``deepcopy`` and ``pickle`` bind the copy to the copied model.
    """

    def __init__(self, function: Callable[..., Any], model: nn.Module) -> None:
        self.function = function
        self.model = weakref.ref(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model = self.model()
        if model is None:
            raise AdapterError(
                f"the model whose {self.function.__name__} this is was freed before the call: keep "
                f"it in a variable, model = quantlora.wrap(...)."
            )
        return self.function(model, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function, self.model())

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(self.function)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__


def dtype_argument(dtype: torch.dtype | str) -> dict[str, Any]:
    """``from_pretrained``'s keyword for a dtype, which was ``torch_dtype`` before 4.56."""
    old = Version(importlib.metadata.version("transformers")) < Version("4.56")
    return {"torch_dtype" if old else "dtype": dtype}


def is_transformers_model(model: nn.Module) -> bool:
    """Whether ``model`` is a Transformers model; imports nothing."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def attach(model: nn.Module) -> None:
    """Set what Trainer looks at, and put our adapter methods in front of the PEFT-calling ones."""
    if not is_transformers_model(model):
        return
    from quantlora.bridge.transformers_methods import METHODS

    vars(model)[_FLAG] = True
    accept_adapter_names(model)
    for name, function in METHODS.items():
        if name != "generate" or hasattr(model, name):  # some models have nothing to say
            vars(model)[name] = AdapterMethod(function, model)


def detach(model: nn.Module) -> None:
    """Take back what `attach` set."""
    own = vars(model)
    for name in (_FLAG, HOTSWAP_FLAG):
        own.pop(name, None)
    refuse_adapter_names(model)
    for name in [name for name, value in own.items() if isinstance(value, AdapterMethod)]:
        del own[name]
