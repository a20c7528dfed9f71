"""Save methods of others, which write the names of LoRA layers where a plain model's are read.

Their counterpart builds a plain model, finds no weight under ``q_proj.weight`` (it stands under
``q_proj.base_layer.weight``) and starts these layers anew: base and adapter are lost, mostly
without an error. A state dict that somebody collects to load it into the wrapped model again is
right, so only methods that a plain model is rebuilt from are refused.
"""

from __future__ import annotations

import inspect
import sys
from types import FrameType

from torch import nn

from quantlora.errors import AdapterFileError

#: Their counterpart is a ``from_pretrained``.
_PRETRAINED = ("save_pretrained", "_save_pretrained", "save_for_hf")


def refuse_plain_owner(path: str) -> None:
    """Raise `AdapterFileError` where such a method is collecting the layer at ``path``."""
    if (found := plain_owner()) is not None:
        raise AdapterFileError(_refusal(*found, path))


def plain_owner() -> tuple[str, str] | None:
    """The class and the name of such a method that is at work above the caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if name in _PRETRAINED or name == "save":
            arguments = inspect.getargvalues(frame)
            owner = arguments.locals.get(arguments.args[0]) if arguments.args else None
            if isinstance(owner, nn.Module) and (name != "save" or _is_rebuilt(owner)):
                return type(owner).__name__, name
        frame = frame.f_back
    return None


def _is_rebuilt(owner: nn.Module) -> bool:
    """Whether a class method makes a new object of its kind from what ``save`` wrote."""
    kinds = (inspect.getattr_static(owner, name, None) for name in ("load", "from_pretrained"))
    return any(isinstance(kind, (classmethod, staticmethod)) for kind in kinds)


def _refusal(owner: str, name: str, path: str) -> str:
    return (
        f"{owner}.{name} would write {path} as a LoRA layer (base_layer, lora_A), which no plain "
        f"{owner} reads: save the adapter with quantlora.save_adapter(model, folder), for the "
        f"model that was wrapped, or call quantlora.merge_and_unload(model) first."
    )
