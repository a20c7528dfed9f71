"""``auto_mapping`` in the config file: the class that an adapter without task type was made for.

PEFT's ``AutoPeftModel`` classes load the base by it where the file has no ``task_type``.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def auto_mapping(model: nn.Module, task_type: str | None) -> dict[str, str] | None:
    """``base_model_class`` and ``parent_library``; None where a task type says it already.

    Also for a class that no other program could import: one of a script or a function. A class that
    sharding has made of the model's is passed over.
    """
    if task_type is not None:
        return None
    cls = next((cls for cls in type(model).__mro__ if _importable(cls)), nn.Module)
    if cls is nn.Module:
        return None
    return {"base_model_class": cls.__name__, "parent_library": cls.__module__}


def _importable(cls: type[Any]) -> bool:
    module = sys.modules.get(cls.__module__)
    return cls.__module__ != "__main__" and getattr(module, cls.__name__, None) is cls
