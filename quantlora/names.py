"""Names of adapters and paths of layers: which are allowed, and as the plain model has them."""

from __future__ import annotations

from collections.abc import Collection

from quantlora.errors import ConfigError

#: Where a module that holds adapters has the one whose place it took, as in PEFT.
BASE_LAYER = "base_layer"
#: Segments that torch.compile, FSDP and activation checkpointing put into module paths.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


#: Dots split module paths; the others are signs of paths and drives on other systems.
_NOT_IN_NAMES = (".", "\\", ":")
#: In bytes, on nearly every file system.
_LONGEST_NAME = 255


def plain_path(path: str) -> str:
    """``path`` in the model as it was before anything was wrapped around its modules."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def outer_path(path: str, adapted: Collection[str] | None = None) -> str:
    """``path`` without the ``base_layer`` of modules that hold adapters, as the plain model has it.

    Such as ``attn.base_layer.out_proj``, which is ``attn.out_proj``; PEFT has one for each adapted
    parameter of ``attn``.

    Args:
        adapted: paths of those modules in the plain model; None: all that are called so.
    """
    kept: list[str] = []
    for part in path.split("."):
        if not (part == BASE_LAYER and kept and (adapted is None or ".".join(kept) in adapted)):
            kept.append(part)
    return ".".join(kept)


def check_name(adapter: str) -> None:
    """A name becomes part of module paths, file keys and a folder's name.

    What PEFT takes is taken: spaces, letters of any alphabet, "owner/name". torch splits paths at
    dots; without them no name leads out of the folder either, if it is not absolute.
    """
    from torch import nn

    parts = adapter.split("/") if isinstance(adapter, str) else [""]
    if not all(part and part == part.strip() and part.isprintable() for part in parts) or any(
        sign in adapter for sign in _NOT_IN_NAMES
    ):
        raise ConfigError(
            f"adapter_name {adapter!r}: it becomes a folder's name, so no dot, backslash, colon or "
            f"control character, and no '/' or space at an end of it."
        )
    if max(len(part.encode()) for part in parts) > _LONGEST_NAME:
        raise ConfigError(f"adapter_name {adapter!r} is longer than a folder's name can be.")
    if adapter.startswith("__") or hasattr(nn.ModuleDict(), adapter):
        raise ConfigError(f"adapter_name {adapter!r} is taken by torch or quantlora: use another.")
