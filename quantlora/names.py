"""Names of adapters and paths of layers: which are allowed, and as the plain model has them."""

from __future__ import annotations

import re

from quantlora.errors import ConfigError

#: Segments that torch.compile, FSDP and activation checkpointing put into module paths.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_path(path: str) -> str:
    """``path`` in the model as it was before anything was wrapped around its modules."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def check_name(adapter: str) -> None:
    """A name becomes part of module paths, file keys and a folder's name."""
    from torch import nn

    if not isinstance(adapter, str) or not re.fullmatch(r"\w[\w-]*", adapter, re.ASCII):
        raise ConfigError(f"adapter_name {adapter!r}: use letters, digits, '_' and '-' only.")
    if adapter.startswith("__") or hasattr(nn.ModuleDict(), adapter):
        raise ConfigError(f"adapter_name {adapter!r} is taken by torch or quantlora: use another.")
