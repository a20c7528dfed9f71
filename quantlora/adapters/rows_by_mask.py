"""Layers whose rows are not one for each sample, whatever their number: they may be so by chance.

A tower for images or sounds gets one row for each image of the batch, and a sample may have two or
none. A head that predicts masked tokens alone (``sparse_prediction``) gets one row for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import frozen_modules
from quantlora.errors import AdapterError, AdapterWarning

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
    towers = [f"{path}." for path in _towers(model)]
    if inside := [path for path in paths if path.startswith(tuple(towers))]:
        text = (
            f"{inside[0]}: this layer is in a tower for images or sounds, and takes one of them "
            f"for each sample, in order: where a sample has none or two, call the model for each "
            f"adapter by itself, or leave the tower out (exclude_modules)."
        )
        warnings.warn(text, AdapterWarning, stacklevel=2)


def _towers(model: nn.Module) -> Iterator[str]:
    """Paths of the towers whose outputs become tokens of a text, and of what projects them."""
    fields = getattr(getattr(model, "config", None), "__dict__", {})
    if not any(name.startswith(_MEDIA) and "_token_" in name for name in fields):
        return
    # By type: Transformers 4 gives a tower a copy of its config.
    media = {type(fields[name]) for name in _CONFIGS if fields.get(name) is not None}
    for path, module in frozen_modules(model):
        projects = any(word in path.rpartition(".")[2] for word in _PROJECTORS)
        if projects or type(getattr(module, "config", None)) in media:
            yield path
