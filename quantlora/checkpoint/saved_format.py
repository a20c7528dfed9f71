"""``backend="saved"``: the float layers of a model in the format that an adapter was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.checkpoint.config_file import read_config
from quantlora.checkpoint.location import AdapterLocation
from quantlora.checkpoint.side_file import Facts, read_note
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.errors import AdapterFileError
from quantlora.formats.quantize_options import option_names
from quantlora.formats.quantizer import Quantizer
from quantlora.names import plain_path
from quantlora.wrapping.quantize import pack_targets

#: What users type as ``backend=`` of `load_adapter`.
SAVED = "saved"


def quantize_as_saved(
    model: nn.Module, location: AdapterLocation, given: Mapping[str, Any] | None = None
) -> None:
    """Pack the layers of ``model`` that are float and were packed when the adapter was trained.

    Layers that are packed already stay as they are; `load_adapter` compares them with the note.

    Args:
        given: settings to take in place of the noted ones.

    Raises:
        AdapterFileError: the files do not say in which format the base was.
        BackendError, MissingLibraryError: as `quantize`.
    """
    folder = location.find()
    parameters = read_config(folder, base_is_noted=True)[0].target_parameters or []
    formats = read_note(folder).get("formats")
    if not formats:
        raise AdapterFileError(
            f"{folder}: its files do not say in which format the base was (PEFT writes no "
            f'quantlora.json): name it, for example backend="bitsandbytes_4bit".'
        )
    modules = {plain_path(path): module for path, module in AdaptedModel(model).modules.items()}
    for facts in formats:
        quantizer = registry().quantizer(facts["quantizer"])
        paths = [] if quantizer.is_float else _float_paths(facts["layers"], modules)
        if paths:
            settings = {**noted_settings(quantizer, facts), **(given or {})}
            config = LoraConfig(**_targets(paths, parameters))
            pack_targets(AdaptedModel(model), config, quantizer, settings, strict=False)


def noted_settings(quantizer: Quantizer, facts: Facts) -> dict[str, Any]:
    """What `quantize` takes of the facts about a layer; how values are stored is left to it."""
    names = {*option_names(quantizer), "bits"} if quantizer.bits else set()
    return {
        name: value
        for name, value in facts.items()
        if name in names and value is not None and not name.endswith(("dtype", "storage"))
    }


def _float_paths(paths: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Those of ``paths`` whose modules are there and float."""
    return [
        path
        for path in paths
        if path in modules and registry().packed_format(modules[path]) is None
    ]


def _targets(paths: list[str], parameters: Sequence[str]) -> dict[str, Any]:
    """The fields of `LoraConfig` that name the layers at ``paths``, experts by their parameters.

    Args:
        parameters: endings of paths, those that the adapter is on.
    """
    found: dict[str, list[str]] = {path: [] for path in paths}
    for path in paths:
        whole = [f"{path}.{name.rpartition('.')[2]}" for name in parameters]
        pairs = zip(whole, parameters, strict=True)
        found[path] = [name for name, end in pairs if f".{name}".endswith(f".{end}")]
    return {
        "target_modules": [path for path in paths if not found[path]],
        "target_parameters": [name for names in found.values() for name in names] or None,
    }
