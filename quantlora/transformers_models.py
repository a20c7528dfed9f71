"""What must be known of Transformers' models in every room; imports it in `named_class` only."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from packaging.version import Version

from quantlora.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")

#: By family and class: whether the layers within get (time, batch, features), after a transposing
#: of the model's own. The nearest class around a layer counts.
_TIME_FIRST = {
    ("xlnet", "XLNetModel"): True,
    ("fsmt", "EncoderLayer"): True,
    ("fsmt", "DecoderLayer"): True,
    ("longformer", "LongformerSelfAttention"): True,
    ("led", "LEDEncoderSelfAttention"): True,
    ("mask2former", "Mask2FormerAttention"): False,  # it turns what the layer around it has turned
    ("oneformer", "OneFormerAttention"): False,
}


def dtype_argument(dtype: torch.dtype | str) -> dict[str, Any]:
    """``from_pretrained``'s keyword for a dtype, which was ``torch_dtype`` before 4.56."""
    old = Version(importlib.metadata.version("transformers")) < Version("4.56")
    return {"torch_dtype" if old else "dtype": dtype}


def is_transformers_model(model: nn.Module) -> bool:
    """Whether ``model`` is a Transformers model; imports nothing."""
    transformers = sys.modules.get("transformers.modeling_utils")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def named_class(config: Mapping[str, Any]) -> Any:
    """The class that a checkpoint was saved from, where Transformers has it, by its config.json.

    ``AutoModelForCausalLM`` where it has none, or where the checkpoint brings its own code.
    """
    import transformers

    names = config.get("architectures") or [""]
    found = None if config.get("auto_map") else getattr(transformers, names[0], None)
    return found or transformers.AutoModelForCausalLM


def time_first(module: nn.Module) -> bool | None:
    """Whether layers in ``module`` get (time, batch, features); None where nobody knows."""
    for cls in type(module).__mro__:
        library, _, rest = cls.__module__.partition(".models.")
        key = rest.partition(".")[0], cls.__name__
        if library == "transformers" and key in _TIME_FIRST:
            return _TIME_FIRST[key]
    return None


def in_this_model(model: nn.Module, notes: Mapping[str, T]) -> dict[str, T]:
    """What a checkpoint's config.json notes of its modules, by the paths that they have here.

    The paths differ where the checkpoint or ``model`` is the base model within a class with a
    head, as ``LlamaModel`` is in ``LlamaForCausalLM``: Transformers renames tensors likewise. What
    is noted of a head that ``model`` does not have is left out.

    Raises:
        ConfigError: the model has no such module.
    """
    here = {_path_here(model, path): note for path, note in notes.items()}
    return {path: note for path, note in here.items() if path is not None}


def _path_here(model: nn.Module, path: str) -> str | None:
    prefix = getattr(model, "base_model_prefix", "") + "."
    for candidate in (path, prefix + path, path.removeprefix(prefix)):
        if _has(model, candidate):
            return candidate
    if prefix != "." and not path.startswith(prefix) and not _has(model, prefix.rstrip(".")):
        return None
    raise ConfigError(
        f"{path}: the checkpoint has it packed, and this model has no such module: is it the class "
        f"that the checkpoint was saved from?"
    )


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:  # the last name may be a parameter: experts' stacks
        parent, _, name = path.rpartition(".")
        return bool(parent) and _has(model, parent) and hasattr(model.get_submodule(parent), name)
    return True
