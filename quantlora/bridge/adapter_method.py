"""A function of ours as a method on one model, and how all of them leave it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from quantlora.adapters.state import set_state
from quantlora.bridge.adapter_names import refuse_adapter_names
from quantlora.errors import AdapterError

#: What Trainer looks at before it trains a quantized model.
TRAINABLE_FLAG = "_hf_peft_config_loaded"
#: Where Transformers remembers ``enable_peft_hotswap``.
HOTSWAP_FLAG = "_hotswap_enabled"
#: Also on a Transformers model within another one that was wrapped.
SAVE = "save_pretrained"


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


def detach(model: nn.Module) -> None:
    """Take Transformers' adapter methods, and what Trainer looks at, off ``model``."""
    for part in model.modules():
        if part is not model and isinstance(vars(part).get(SAVE), AdapterMethod):
            del vars(part)[SAVE]
            set_state(part, None)
    attributes = vars(model)
    for name in (TRAINABLE_FLAG, HOTSWAP_FLAG):
        attributes.pop(name, None)
    refuse_adapter_names(model)
    for name in [name for name, value in attributes.items() if isinstance(value, AdapterMethod)]:
        del attributes[name]
