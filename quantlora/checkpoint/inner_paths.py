"""Layers inside a module whose own parameters are adapted, such as torch's attention.

PEFT's wrapper of that module is in their names: ``attn.base_layer.out_proj.lora_A.weight``, with a
``base_layer`` for each adapted parameter.
"""

from __future__ import annotations

from collections.abc import Collection

from quantlora.checkpoint.match_tensors import ByPath

_BETWEEN = "base_layer."


def outer_path(path: str, adapted: Collection[str]) -> str:
    """``path`` in the plain model; ``adapted`` are the paths of such modules there."""
    start = 0
    while (at := path.find(f".{_BETWEEN}", start)) >= 0:
        before, inner = path[:at], path[at + 1 :]
        if before in adapted:
            while inner.startswith(_BETWEEN):
                inner = inner.removeprefix(_BETWEEN)
            path = f"{before}.{inner}"
        start = at + 1
    return path


def by_outer_path(found: ByPath, adapted: Collection[str]) -> ByPath:
    """``found`` by paths in the plain model.

    Where PEFT is given an attention and its ``out_proj`` by name, it writes a second adapter for
    the latter, ``attn.out_proj``, in a module that its forward never reaches: left out.
    """
    outer = {path: outer_path(path, adapted) for path in found}
    inside = {new for path, new in outer.items() if path != new}
    return {new: found[path] for path, new in outer.items() if path != new or path not in inside}
