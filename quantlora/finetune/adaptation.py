"""The adapter of a run: decided before the weights are loaded, then put on the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from quantlora.adapters.holders import lora_layers
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.registration import registry
from quantlora.errors import ConfigError
from quantlora.finetune.base_model import BaseModel
from quantlora.finetune.options import FinetuneOptions
from quantlora.finetune.quantization import Format, choose_format
from quantlora.names import unknown
from quantlora.wrapped_model import wrap
from quantlora.wrapping.bases import frozen_bases
from quantlora.wrapping.plan import AUTO, make_plan

_ADAPTER = "default"
#: The start of LoRA itself, which needs nothing but the shapes.
_PLAIN_START = "default"


@dataclass(frozen=True)
class Adaptation:
    """What `wrap` is to do with the model at ``place``."""

    place: str
    config: LoraConfig
    form: Format
    reference: str | None

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """``model``, in its format, with its adapter."""
        if self.config.init_lora_weights == _PLAIN_START:
            backend, options = self.form.backend, self.form.options
            return wrap(model, self.config, backend=backend, quantize_options=options)
        return self._start_on_packed(model)

    def _start_on_packed(self, model: PreTrainedModel) -> PreTrainedModel:
        """Quantize first, then choose A and B for what came out.

        Within one call an initializer may choose the packed weights along with A and B. Nobody who
        loads the adapter would have those weights, so here they are fixed before it is asked.
        """
        plan = make_plan(model, self.config, self.form.backend, _ADAPTER, registry())
        bases = frozen_bases(model, plan, self.form.options)
        for path, layer in bases.items():
            model.set_submodule(path, layer)
        packed = any(planned.quantize for planned in plan)
        reference = self.reference or (self.place if packed else None)
        wrap(model, self.config, backend=AUTO, reference=reference)
        self._check_kept(model, bases)
        return model

    def _check_kept(self, model: nn.Module, bases: dict[str, nn.Module]) -> None:
        kept = {id(layer) for layer in bases.values()}
        if any(id(layer.base_layer) not in kept for _, layer in lora_layers(model)):
            raise ConfigError(
                f"--init {self.config.init_lora_weights} moves a part of the weights from the "
                f"model into the adapter. This command leaves only the adapter, which would not "
                f"fit the model any more: use another --init, or quantlora.wrap from Python, "
                f"where you can save the model too."
            )


def choose_adaptation(base: BaseModel, options: FinetuneOptions) -> Adaptation:
    """What ``options`` ask for, with everything checked that needs no weights.

    Raises:
        ConfigError, BackendError, MissingLibraryError: they cannot be had.
    """
    config = lora_config(options, base.place)
    registry().initializer(config).check(config)
    form = choose_format(options, base.is_quantized)
    return Adaptation(base.place, config, form, options.reference)


def lora_config(options: FinetuneOptions, place: str) -> LoraConfig:
    fields: dict[str, Any] = {
        "r": options.rank,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.dropout,
        "target_modules": options.targets,
        "init_lora_weights": options.init,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": place,
    }
    if options.init != _PLAIN_START:  # some ask for it; the layers have their bits by then
        fields["loftq_config"] = {"loftq_bits": None}
    return LoraConfig.from_fields(fields | _variant(options.variant))


def _variant(name: str) -> dict[str, Any]:
    """The variant's own flag where PEFT has one, for its files must say so."""
    if name not in registry().variants:
        raise ConfigError(unknown("variant", name, registry().variants))
    if name == "lora":
        return {}
    flag = f"use_{name}"
    has_flag = flag in {field.name for field in dataclasses.fields(LoraConfig)}
    return {flag: True} if has_flag else {"use_variant": name}
