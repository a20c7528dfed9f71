"""An adapter from a folder or the hub onto a model, all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import regex
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.adapter_modules import modules_of_adapter
from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.checkpoint.attention_files import warn_of_later_peft, warn_of_lone_out_proj
from quantlora.checkpoint.base_note import remember
from quantlora.checkpoint.base_tensors import base_values, in_place
from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.location import AdapterLocation
from quantlora.checkpoint.match_tensors import (
    ByPath,
    by_outer_path,
    by_path,
    check_paths,
    check_ranks,
    fill,
    split_biases,
)
from quantlora.checkpoint.read import read_for
from quantlora.checkpoint.side_file import report_differences
from quantlora.checkpoint.tied_tensors import without_repetitions
from quantlora.checkpoint.variant_fields import take_file_alpha
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import AUTO, registry
from quantlora.errors import AdapterFileError, ConfigError
from quantlora.layers.adapter_module import AdapterModule
from quantlora.layers.layer import LoraLayer
from quantlora.layers.trained_bias import TrainedBias
from quantlora.names import check_name, plain_path
from quantlora.wrapping.apply_plan import apply_plan
from quantlora.wrapping.biases import find_biases
from quantlora.wrapping.new_adapter import NewAdapter
from quantlora.wrapping.plan import PlannedLayer, make_plan


@dataclass(frozen=True)
class LoadedAdapter(NewAdapter):
    """An adapter whose values are in a file.

    Args:
        source: the file, for messages.
        given: its tensors by plain path.
        biases: the values of trained biases by the first of their names.
    """

    source: str
    given: ByPath
    biases: Mapping[str, Tensor]

    def start(self, planned: PlannedLayer, layer: LoraLayer) -> None:
        layer.finish_adapter(self.name, self.config)
        take_file_alpha(layer, self.config, self.name)
        self._fill(planned.path, layer)

    def start_saved(self, path: str, module: ModulesToSaveWrapper) -> None:
        self._fill(path, module)

    def _fill(self, path: str, module: AdapterModule) -> None:
        tensors = module.adapter_tensors(self.name)
        fill(f"{self.source}, {path}", tensors, self.given[plain_path(path)])

    def start_bias(self, bias: TrainedBias) -> None:
        name = bias.names[0]
        fill(self.source, {name: bias.parameter}, {name: self.biases[name]})


def add_loaded_adapter(
    model: nn.Module,
    location: AdapterLocation,
    *,
    is_trainable: bool = False,
    backend: str = AUTO,
    quantize_options: Mapping[str, Any] | None = None,
) -> None:
    """`quantlora.load_adapter` but for Transformers' methods; arguments and errors are there."""
    check_name(location.adapter)
    adapted = AdaptedModel(model)
    found = read_for(adapted, location)
    config = replace(found.config, inference_mode=not is_trainable)
    name, source = location.adapter, found.source
    applied = put_on(adapted, config, found.tensors, name, source, backend, quantize_options)
    remember(found.file, applied, name)
    if version := found.file.peft_version:
        warn_of_later_peft(source, applied, name, version)
        warn_of_lone_out_proj(applied, name, trained=True)
    if not is_trainable:
        _evaluate(applied, name)
    report_differences(found.file.note, applied, name, source)


def _evaluate(adapted: AdaptedModel, adapter: str) -> None:
    """``model.eval()``; one that is so already is not gone over for each of its adapters."""
    modules = adapted.modules.values()
    if any(module.training for module in (*modules, *adapted.adapter_modules.values())):
        adapted.model.eval()
    for module in adapted.adapter_modules.values():
        for part in modules_of_adapter(module, adapter):
            part.training = False


def put_on(
    adapted: AdaptedModel,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
    adapter: str,
    source: str,
    backend: str = AUTO,
    quantize_options: Mapping[str, Any] | None = None,
) -> AdaptedModel:
    """Put an adapter in memory on the model, as one transaction; returns the model with it.

    Args:
        tensors: by their keys in an adapter file.
        source: where it comes from, for messages.
    """
    config = _with_targets(config, tensors)
    try:
        config, tensors = without_repetitions(adapted, config, tensors)
        plan = make_plan(adapted, config, registry().asked(backend), adapter, strict=False)
        biases = find_biases(adapted, config, {planned.path for planned in plan.layers})
        values, rest = split_biases(source, tensors, [bias.names for bias in biases])
        found, others = by_path(rest, plan.saved)
        adapted_parameters = {
            plain_path(planned.path) for planned in plan.layers if planned.target.parameters
        }
        given = by_outer_path(found, adapted_parameters)
        check_paths(source, given, plan)
        check_ranks(source, given, plan.layers)
        base = base_values(source, others, adapted)
        loaded = LoadedAdapter(adapter, config, source, given, values)
        with in_place(source, base, adapted.model):
            return apply_plan(adapted, plan, loaded, quantize_options)
    except (ConfigError, regex.error) as error:
        raise AdapterFileError(f"{source} does not fit this model: {error}") from error


def _with_targets(config: LoraConfig, tensors: Mapping[str, Tensor]) -> LoraConfig:
    """``config``, where it names no targets with the layers that the file has tensors for."""
    if config.target_modules is not None or config.target_parameters:
        return config
    return replace(config, target_modules=sorted({split_key(key)[0] for key in tensors} - {""}))
