"""`load_adapter`: an adapter from a folder or the hub onto a model, all of it or nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.place import find_folder
from quantlora.checkpoint.read import read_adapter
from quantlora.checkpoint.side_file import report_differences
from quantlora.checkpoint.variant_fields import take_file_alpha
from quantlora.config import LoraConfig
from quantlora.errors import AdapterFileError, ConfigError
from quantlora.layer import LoraLayer
from quantlora.names import check_name, near
from quantlora.plan import AUTO, PlannedLayer, make_plan
from quantlora.registration import registry
from quantlora.wrapping import apply_plan

M = TypeVar("M", bound=nn.Module)

#: The tensors of an adapter file by layer path, then by name: ``lora_A.weight``.
ByLayer = dict[str, dict[str, Tensor]]


def load_adapter(
    model: M,
    folder: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    backend: str = AUTO,
    revision: str | None = None,
    token: str | bool | None = None,
) -> M:
    """Put the adapter in ``folder``, written by quantlora or PEFT, on ``model`` and activate it.

    Everything is read and checked before the model is touched; if anything fails, the model is
    as it was.

    Args:
        model: plain or wrapped; its layers in any format a plugin knows.
        folder: a folder, or an id on the Hugging Face hub. With a sub-folder called
            ``adapter_name``, the adapter in there is taken.
        adapter_name: the name it gets in the model.
        is_trainable: train it on; else its parameters are frozen.
        backend: as in `wrap`.
        revision, token: for the hub.

    Returns:
        The same model.

    Raises:
        AdapterFileError: the files are missing, damaged, unsafe, or do not fit the model.
        AdapterError: the model has an adapter of that name.
        LayerError, BackendError, MissingLibraryError: as in `wrap`.
    """
    check_name(adapter_name)
    place = find_folder(folder, adapter_name, revision, token)
    saved = read_adapter(place)
    config = replace(saved.config, inference_mode=not is_trainable)
    put_on(model, config, saved.tensors, adapter_name, str(place), backend)
    report_differences(saved.note, model, adapter_name, str(place))
    return model


def put_on(
    model: nn.Module,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    adapter: str,
    source: str,
    backend: str = AUTO,
) -> None:
    """Put an adapter in memory on ``model``, as one transaction.

    Args:
        tensors: by their keys in an adapter file.
        source: where it comes from, for messages.
    """
    given = _by_layer(source, tensors)

    def start(planned: PlannedLayer, layer: LoraLayer) -> None:
        layer.finish_adapter(adapter, config)
        take_file_alpha(layer, config, adapter)
        fill(f"{source}, {planned.path}", layer.adapter_tensors(adapter), given[planned.path])

    try:
        plan = make_plan(model, config, backend, adapter, registry())
        _check_paths(source, given, plan)
        apply_plan(model, plan, config, adapter, start)
    except (ConfigError, re.error) as error:
        raise AdapterFileError(f"{source} does not fit this model: {error}") from error


def _by_layer(source: str, tensors: Mapping[str, Tensor]) -> ByLayer:
    layers: ByLayer = {}
    for key, tensor in tensors.items():
        path, name = split_key(key)
        layers.setdefault(path, {})[name] = tensor
    if others := layers.pop("", {}):
        raise AdapterFileError(
            f"{source}: {len(others)} tensors belong to no LoRA layer, {next(iter(others))} "
            f"first: quantlora reads LoRA adapters only."
        )
    return layers


def _check_paths(source: str, given: ByLayer, plan: list[PlannedLayer]) -> None:
    """The file has tensors for the planned layers and for no others."""
    first = {id(planned.layer): planned.path for planned in reversed(plan)}
    wanted = set(first.values())
    strange = [path for path in given if path not in wanted]
    absent = [path for path in wanted if path not in given]
    faults = []
    if strange:
        close = near(strange[0], wanted) or sorted(wanted)[:3]
        faults.append(
            f"it has tensors for {len(strange)} layers that the model lacks or its config does "
            f"not target, {strange[0]} first (near names: {', '.join(close)})"
        )
    if absent:
        faults.append(f"it lacks those of {len(absent)} targeted layers, {min(absent)} first")
    if faults:
        raise AdapterFileError(
            f"{source} does not fit this model: {'; '.join(faults)}. Is it for another base model?"
        )


@torch.no_grad()
def fill(source: str, wanted: Mapping[str, nn.Parameter], given: Mapping[str, Tensor]) -> None:
    """Copy ``given`` into ``wanted`` where both have the same names and shapes."""
    here = {name: tuple(parameter.shape) for name, parameter in wanted.items()}
    there = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if here != there:
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        facts = [f"{n}: expected {_shape(here, n)}, found {_shape(there, n)}" for n in names]
        raise AdapterFileError(
            f"{source} does not fit this model: {'; '.join(facts)}. Is it for another base model, "
            f"or has adapter_config.json been changed?"
        )
    for name, parameter in wanted.items():
        parameter.copy_(given[name])


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(shapes[name]) if name in shapes else "nothing"
