"""Layers whose rows are not one for each sample, whatever their number: they may be so by chance.

A tower for images or sounds gets one row for each image of the batch, and a sample may have two or
none. A head that predicts masked tokens alone (``sparse_prediction``) gets one row for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.errors import AdapterError, AdapterWarning
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.calls import calls

_MEDIA = ("image", "video", "audio")
#: Of the towers, in the config of the whole.
_CONFIGS = ("vision_config", "audio_config", "video_config", "image_config", "encoder_config")
_PROJECTORS = ("projector", "connector", "aligner")


def check_rows_by_mask(adapted: AdaptedModel, names: Collection[str]) -> None:
    """Refuse adapters ``names`` on a head of masked tokens; warn where one is on a tower."""
    paths = [p for p, module in adapted.adapter_modules.items() if {*names} & {*module.adapters}]
    model: Any = adapted.model
    encoder = f"{getattr(model, 'base_model_prefix', '')}."
    head = [path for path in paths if not path.startswith(encoder)]
    if head and getattr(model, "sparse_prediction", False) is True:
        raise AdapterError(
            f"{head[0]}: this head gets masked tokens alone (sparse_prediction), of no sample in "
            f"particular, so it cannot be in a mixed batch: set model.sparse_prediction = False, "
            f"or call the model for each adapter by itself."
        )
    if inside := _in_towers(model, paths):
        text = (
            f"{inside[0]}: this layer is in a tower for images or sounds, and takes one of them "
            f"for each sample, in order: where a sample has none or two, call the model for each "
            f"adapter by itself, or leave the tower out (exclude_modules)."
        )
        warnings.warn(text, AdapterWarning, stacklevel=2)


def check_media(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call with an image or sound in some samples only, where adapters on a tower differ.

    Each sample with one has a row of the tower's at least, in order: so where the rows are as many
    as the samples, which the layers check, each has one.
    """
    ids = kwargs.get("input_ids", args[0] if args else None)
    tokens = _media_tokens(model)
    if not tokens or not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] == 1:
        return
    path = _mixed_in_towers(model)  # asked first: reading the tokens waits for an accelerator
    for token in tokens if path else ():
        here = (ids == token).any(1)
        if bool(here.any()) and not bool(here.all()):
            raise AdapterError(
                f"{path}: this layer is in a tower for images or sounds, and of this mixed batch "
                f"samples {here.nonzero().flatten().tolist()} have one and the others none, so its "
                f"rows are not the samples: call the model for each adapter by itself, or leave "
                f"the tower out (exclude_modules)."
            )


def _mixed_in_towers(model: nn.Module) -> str:
    """The first layer of a tower whose samples have several adapters in this thread; or none."""
    samples = calls().samples

    def is_mixed(module: AdapterModule) -> bool:
        names = {*samples.get(id(module), ())}
        return len(names) > 1 and bool(names & {*module.adapters})

    modules = AdaptedModel.of(model).adapter_modules
    found = _in_towers(model, [path for path, module in modules.items() if is_mixed(module)])
    return found[0] if found else ""


def _in_towers(model: nn.Module, paths: Collection[str]) -> list[str]:
    towers = tuple(f"{path}." for path in _towers(model)) if paths else ()
    return [path for path in paths if f"{path}.".startswith(towers)] if towers else []


def _media_tokens(model: nn.Module) -> dict[int, None]:
    """The tokens that stand for what a tower gives: those of images, of videos, of sounds."""
    fields = _fields(model)
    named = (name for name in fields if name.startswith(_MEDIA) and "_token_" in name)
    return {fields[name]: None for name in named if isinstance(fields[name], int)}


def _fields(model: nn.Module) -> Mapping[str, Any]:
    return getattr(getattr(model, "config", None), "__dict__", {})


def _towers(model: nn.Module) -> Iterator[str]:
    """Paths of the towers whose outputs become tokens of a text, and of what projects them."""
    fields = _fields(model)
    if not any(name.startswith(_MEDIA) and "_token_" in name for name in fields):
        return
    # By type: Transformers 4 gives a tower a copy of its config.
    media = {type(fields[name]) for name in _CONFIGS if fields.get(name) is not None}
    for path, module in frozen_modules(model):
        projects = any(word in path.rpartition(".")[2] for word in _PROJECTORS)
        if projects or type(getattr(module, "config", None)) in media:
            yield path
