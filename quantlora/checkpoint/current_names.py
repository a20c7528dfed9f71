"""A file's tensors by the names that the model's modules have now.

The names in a file are those of its time: saved from a compiled or data-parallel model they have
its prefixes, and Transformers has moved modules of many models since (``model.layers`` of Qwen2-VL
is ``model.language_model.layers``). Transformers keeps the renamings for its own checkpoints, and
they are asked for here too. A name that the model has is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.key_mapping import KeyMapping
from quantlora.checkpoint.keys import PREFIX, SINGLE, base_name, split_key
from quantlora.checkpoint.renamed_config import renamed_config
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import AdapterFileError
from quantlora.names import outer_path, plain_path
from quantlora.transformers_models import is_transformers_model

#: What stands before a name where a model was wrapped once more before it was saved.
_BEFORE = (PREFIX, "base_model.", "module.")

Rename = Callable[[str], str]


def current_names(
    source: str,
    adapted: AdaptedModel,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    key_mapping: Mapping[str, str] | None = None,
) -> tuple[LoraConfig, Mapping[str, Tensor]]:
    """``config`` and ``tensors`` of a file, renamed where the model calls its modules otherwise.

    A config whose names pick other layers then gets the paths of the file's own.

    Args:
        source: the file, for messages.
        key_mapping: expressions and what to put in their place, as in ``from_pretrained``; all
            of them are applied to each key without its prefix, one after the other.

    Raises:
        AdapterFileError: two tensors would have one name, or an expression is none.
    """
    paths = {plain_path(path) for path in adapted.modules}
    by_hand, renames = KeyMapping(source, key_mapping or {}), _by_transformers(adapted.model)
    given = {key: by_hand.rename(_forms(key.removeprefix(PREFIX))) for key in tensors}
    by_hand.warn_of_unused()
    new = {key: _current(name, paths, renames) for key, name in given.items()}
    if len(set(new.values())) < len(new):
        twice = next(key for key in new if list(new.values()).count(new[key]) > 1)
        raise AdapterFileError(
            f"{source}: {twice} and another tensor both belong to {new[twice]}: the file holds "
            f"several adapters, or key_mapping gives two tensors one name."
        )
    pairs = [(key.removeprefix(PREFIX), name) for key, name in new.items()]
    layers = {_layer(key): _layer(name) for key, name in pairs if _is_lora(key)}
    modules = {_module(key): _module(name) for key, name in pairs if not _is_lora(key)}
    renamed = {PREFIX + new[key]: tensor for key, tensor in tensors.items()}
    return renamed_config(config, layers, modules, paths), renamed


def _current(key: str, paths: set[str], renames: list[Rename]) -> str:
    """``key`` by the first of its possible names whose module ``paths`` has, or as it is."""
    every = list(_possible(key, renames))
    found = next((name for name in every if _module(name) in paths), "")
    return found or next((name for name in every if _experts(name) in paths), key)


def _possible(key: str, renames: list[Rename]) -> Iterator[str]:
    yield from _forms(key)
    for form in _forms(key):
        yield from (name for rename in renames if (name := rename(form)) != form)


def _forms(key: str) -> Iterator[str]:
    """``key``, and without what wrappers have put before and into it."""
    yield key
    yield from _without_wrappers(key)


def _without_wrappers(key: str) -> Iterator[str]:
    """``key`` without each wrapper's segments, one after the other."""
    key = plain_path(key)
    yield key
    while before := next((prefix for prefix in _BEFORE if key.startswith(prefix)), ""):
        key = key.removeprefix(before)
        yield key


def _module(key: str) -> str:
    """The path of the module whose tensor ``key`` is."""
    inner = _layer(key)  # of an attention's out_proj: attn.base_layer.out_proj
    return outer_path(inner) or base_name(key).rpartition(".")[0]


def _experts(key: str) -> str:
    """The path of the experts, where ``key`` is a tensor of one of them: ``experts.3.w1``."""
    found = SINGLE.fullmatch(_layer(key))
    return found["experts"] if found else ""


def _layer(key: str) -> str:
    """The path of the LoRA layer whose tensor ``key`` is, or nothing."""
    return split_key(PREFIX + key)[0]


def _is_lora(key: str) -> bool:
    """Whether ``key`` is a tensor of a LoRA layer, and not of one with trained tokens."""
    return bool(_layer(key)) and ".token_adapter." not in key


def _by_transformers(model: nn.Module) -> list[Rename]:
    """The renamings that ``from_pretrained`` of this model would apply, as one."""
    if not is_transformers_model(model):
        return []
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # before Transformers 5
        mapping = KeyMapping("", getattr(model, "_checkpoint_conversion_mapping", {}))
        return [lambda key: mapping.rename([key])]
    transformers_model: Any = model
    all_of_it = get_model_conversion_mapping(transformers_model)
    renamings = [renaming for renaming in all_of_it if isinstance(renaming, WeightRenaming)]
    prefix: Any = getattr(model, "base_model_prefix", "")

    def rename(key: str) -> str:
        path, name = split_key(PREFIX + key)  # the renamings know of the layer's weight only
        new = f"{path}.weight" if path else name
        for renaming in renamings:
            new = renaming.rename_source_key(new)[0]
        return f"{new.removesuffix('.weight')}.{name}" if path else new

    return [rename, lambda key: f"{prefix}.{rename(key)}"] if prefix else [rename]
