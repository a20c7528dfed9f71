"""`quantize`: the layers that `wrap` would pack, packed, without an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.not_runnable import idle
from quantlora.adapters.packed_config import note_packed
from quantlora.adapters.read_by_model import read_by_model, say_float
from quantlora.config.lora_config import LoraConfig
from quantlora.config.lora_fields import LoraFields, shows_fields
from quantlora.config.peft_config import PeftConfig
from quantlora.discovery.registration import registry
from quantlora.errors import warn
from quantlora.formats.quantizer import Quantizer
from quantlora.wrapping.add_adapter import for_model, given_config
from quantlora.wrapping.bases import frozen_bases
from quantlora.wrapping.plan import once_each, plan_layers
from quantlora.wrapping.transaction import Transaction

if TYPE_CHECKING:
    from typing_extensions import Unpack

M = TypeVar("M", bound=nn.Module)


@shows_fields
def quantize(
    model: M,
    config: LoraConfig | PeftConfig | None = None,
    *,
    backend: str,
    quantize_options: Mapping[str, Any] | None = None,
    **fields: Unpack[LoraFields],
) -> M:
    """Pack the target layers of ``model`` in place, and put no adapter on them.

    Args:
        model: float, or with some layers packed already.
        config: says which layers, as in `wrap`; or its fields: ``exclude_modules=["lm_head"]``.
        backend: the format; ``"auto"`` leaves every layer as it is, and so does any other a layer
            whose weight the model's own code reads (T5's ``wo``), with an `AdapterWarning`.
        quantize_options: settings of that format (bits, block size and so on).

    Returns:
        The same object. If anything fails, the model is as it was before the call.

    Raises:
        ConfigError, TargetError, BackendError, LayerError, MissingLibraryError: as `wrap`.
    """
    settings = for_model(adapted := AdaptedModel(model), given_config(model, config, fields))
    pack_targets(adapted, settings, registry().asked(backend), quantize_options or {})
    if text := idle(AdaptedModel(model)):
        warn(text)
    return model


def pack_targets(
    adapted: AdaptedModel,
    config: LoraConfig,
    asked: Quantizer | None,
    options: Mapping[str, Any],
    strict: bool = True,
) -> None:
    """`quantize` for a format that is found already; ``strict`` as in `plan_layers`."""
    model = adapted.model
    plan = plan_layers(adapted, config, asked, strict=strict)
    read = read_by_model(model, [planned.path for planned in plan if planned.quantize])
    say_float(read)
    plan = [planned for planned in plan if planned.path not in read]
    with Transaction(model):
        bases = frozen_bases(adapted, once_each(plan), options)
        packed = {id(planned.layer): bases[planned.path] for planned in once_each(plan)}
        for planned in once_each(plan):
            if planned.quantize:
                planned.quantizer.prepare(bases[planned.path], planned.path)
        for planned in plan:
            model.set_submodule(planned.path, packed[id(planned.layer)])
    note_packed(model)
