"""What must be known of Transformers' models in every room; imports nothing of Transformers."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from packaging.version import Version

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Families whose blocks compute with (time, batch, features), after their own transposing.
_TIME_FIRST = {"xlnet", "fsmt"}


def dtype_argument(dtype: torch.dtype | str) -> dict[str, Any]:
    """``from_pretrained``'s keyword for a dtype, which was ``torch_dtype`` before 4.56."""
    old = Version(importlib.metadata.version("transformers")) < Version("4.56")
    return {"torch_dtype" if old else "dtype": dtype}


def is_transformers_model(model: nn.Module) -> bool:
    """Whether ``model`` is a Transformers model; imports nothing."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def time_first_class(modules: Iterable[nn.Module]) -> str | None:
    """The name of a class among ``modules`` whose layers get (time, batch, features), if any."""
    for kind in {type(module) for module in modules}:
        for one in kind.__mro__:
            library, _, rest = one.__module__.partition(".models.")
            if library == "transformers" and rest.partition(".")[0] in _TIME_FIRST:
                return one.__name__
    return None
