"""Names of tensors in an adapter file, as PEFT has them.

    base_model.model.<path of the layer>.lora_A.weight

The adapter's own name is left out, so that it may be loaded under another one.
"""

from __future__ import annotations

import re
from typing import cast

from torch import nn

from quantlora.layers.parameters import LoraParameters
from quantlora.names import BASE_LAYER, plain_path

PREFIX = "base_model.model."

#: Several adapted parameters of one module are nested: ``<path>.base_layer.lora_A.weight``.
_LORA_KEY = re.compile(
    r"(?P<path>.+?)\.(?P<name>(base_layer\.)*lora_(?!.*\.lora_).*|token_adapter\.trainable_.*)"
)

#: A layer of one expert, where files hold experts one by one.
SINGLE = re.compile(r"(?P<experts>.+)\.(?P<number>\d+)\.(?P<projection>[^.]+)")

#: What PEFT puts between a module's path and the names of its frozen tensors.
_FROZEN = (".token_adapter.base_layer.", ".base_layer.", ".original_module.")


def base_name(key: str) -> str:
    """The name in the plain model of a frozen tensor that is called ``key`` in a wrapped one."""
    name = plain_path(key.removeprefix(PREFIX))
    for part in _FROZEN:
        name = name.replace(part, ".")
    return name


def file_key(path: str, name: str) -> str:
    """The key of tensor ``name`` (``lora_A.weight``) of the layer at ``path``."""
    return f"{PREFIX}{path}.{name}"


def file_path(model: nn.Module, path: str, adapter: str) -> str:
    """``path`` of ``model`` as PEFT's file of ``adapter`` has it.

    Around a layer inside a module whose parameters are adapted there is one wrapper for each of
    these: ``attn.base_layer.base_layer.linear``.
    """
    found: list[str] = []
    module = model
    for part in path.split("."):
        repeat = 1
        if part == BASE_LAYER and isinstance(module, LoraParameters):
            repeat = (
                len(cast(nn.ModuleDict, module.lora_A[adapter]))
                if adapter in module.adapters
                else 0
            )
        found += [part] * repeat
        module = module.get_submodule(part)
    return plain_path(".".join(found))


def split_key(key: str) -> tuple[str, str]:
    """``(path, name)`` of a key; ``("", key)`` where it is no tensor of a LoRA layer."""
    found = _LORA_KEY.fullmatch(key.removeprefix(PREFIX))
    return (found["path"], found["name"]) if found else ("", key.removeprefix(PREFIX))
