"""A quantizer of Transformers that does as theirs does, except inside `kept_packed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableSet
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from quantlora import ConfigError, set_expert_stack
from quantlora_mxfp4.blocks import BLOCK, LARGEST
from quantlora_mxfp4.stack import Mxfp4Experts

#: What was wrong with stacks, while a model is loaded whose blocks are kept; else None.
_PROBLEMS: ContextVar[list[ConfigError] | None] = ContextVar("problems", default=None)


@contextmanager
def kept_packed() -> Iterator[list[ConfigError]]:
    """While a model is loaded: its blocks are kept.

    Gives what was wrong with them: Transformers notes errors of its operations and loads on, to
    end with one of its own that does not say it.
    """
    _register()
    problems: list[ConfigError] = []
    token = _PROBLEMS.set(problems)
    try:
        yield problems
    finally:
        _PROBLEMS.reset(token)


def forget_reading(model: Any) -> None:
    """What has put the blocks in place need not be undone when the model is saved."""
    known = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [each for each in known if not _is_ours(each)]


def _is_ours(conversion: Any) -> bool:
    return any(isinstance(step, KeepBlocks) for step in getattr(conversion, "operations", ()))


_Theirs: Any = Mxfp4HfQuantizer  # mostly untyped, as are its operations
_Operation: Any = ConversionOps


class KeptMxfp4(_Theirs):  # type: ignore[misc]
    """Mxfp4HfQuantizer, and for models that were loaded inside `kept_packed` one that trains."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept = _PROBLEMS.get() is not None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.kept:
            super().validate_environment(*args, **kwargs)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if not self.kept:
            super()._process_model_before_weight_loading(model, **kwargs)

    def get_load_operations(self) -> dict[str, Any]:
        if self.kept:
            return {"deserialize": KeepBlocks}
        found: dict[str, Any] = super().get_load_operations()
        return found

    def get_state_dict_and_metadata(self, model: Any) -> Any:
        return (model.state_dict(), {}) if self.kept else super().get_state_dict_and_metadata(model)

    @property
    def is_trainable(self) -> bool:
        return self.kept or bool(super().is_trainable)


class KeepBlocks(_Operation):  # type: ignore[misc]
    """Puts the blocks and scales of one stack of experts into the model as they are."""

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self,
        input_dict: Mapping[str, Any],
        *,
        model: nn.Module,
        full_layer_name: str,
        missing_keys: MutableSet[str] | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        try:
            self._put(input_dict, model, full_layer_name)
        except ConfigError as error:
            _note(error)
            raise
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}

    def _put(self, found: Mapping[str, Any], model: nn.Module, name: str) -> None:
        own = name.rpartition(".")[2]
        blocks, scales = (_tensor(found, f"{own}_{part}", name) for part in ("blocks", "scales"))
        _check(blocks, scales, name)
        dtype = model.get_parameter(name).dtype
        set_expert_stack(model, name, Mxfp4Experts(blocks, scales, dtype, True))


def _note(error: ConfigError) -> None:
    problems = _PROBLEMS.get()
    if problems is not None:
        problems.append(error)


def _tensor(found: Mapping[str, Any], name: str, parameter: str) -> Tensor:
    if name not in found:
        path = parameter.rpartition(".")[0]
        raise ConfigError(
            f"{path}.{name} is not among the checkpoint's tensors: it is damaged or not whole."
        )
    tensor: Tensor = found[name][0] if isinstance(found[name], list) else found[name]
    return tensor


def _check(blocks: Tensor, scales: Tensor, name: str) -> None:
    """Raise `ConfigError` where the tensors are not blocks and their scales."""
    problem = ""
    if {blocks.dtype, scales.dtype} != {torch.uint8}:
        problem = f"they are {blocks.dtype} and {scales.dtype}, not bytes"
    elif scales.dim() != 3 or blocks.shape != (*scales.shape, BLOCK // 2):
        problem = f"they have shapes {tuple(blocks.shape)} and {tuple(scales.shape)}"
    elif not scales.is_meta and bool((scales > LARGEST).any()):
        problem = "a scale is NaN, or beyond float32 (above 2^125)"
    if problem:
        raise ConfigError(f"{name}: its blocks and scales cannot be MXFP4: {problem}.")


@cache
def _register() -> None:
    mapping: Any = AUTO_QUANTIZER_MAPPING
    mapping["mxfp4"] = KeptMxfp4
