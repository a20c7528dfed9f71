"""The adapter of a run: decided before the weights are loaded, then put on the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from quantlora import LoraConfig, lora_layers, quantize, registry, wrap
from quantlora.errors import ConfigError
from quantlora.suggestions import unknown
from quantlora_finetune.model.base_model import BaseModel
from quantlora_finetune.model.quantization import Format, choose_format
from quantlora_finetune.options.adapter import names_in
from quantlora_finetune.options.finetune_options import FinetuneOptions

#: The start of LoRA itself, which needs nothing but the shapes.
_PLAIN_START = "default"


@dataclass(frozen=True)
class Adaptation:
    """What `wrap` is to do with the model at ``model_id_or_path``."""

    model_id_or_path: str
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
        before = [type(module) for module in model.modules()]
        backend, options = self.form.backend, self.form.options
        quantize(model, self.config, backend=backend, quantize_options=options)
        packed = list(model.modules())
        changed = [type(module) for module in packed] != before
        reference = self.reference or (self.model_id_or_path if changed else None)
        wrap(model, self.config, reference=reference)
        self._check_kept(model, {id(module) for module in packed})
        return model

    def _check_kept(self, model: nn.Module, kept: set[int]) -> None:
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
    config = lora_config(options, base.model_id_or_path)
    registry().initializer(config).check(config)
    form = choose_format(options, base.is_quantized)
    return Adaptation(base.model_id_or_path, config, form, options.reference)


def lora_config(options: FinetuneOptions, model_id_or_path: str) -> LoraConfig:
    fields: dict[str, Any] = {
        "r": options.rank,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.dropout,
        "target_modules": options.targets,
        "init_lora_weights": options.init,
        "use_rslora": options.use_rslora,
        "modules_to_save": names_in(options.modules_to_save or "") or None,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model_id_or_path,
    }
    if options.init != _PLAIN_START:  # some ask for it; the layers have their bits by then
        fields["loftq_config"] = {"loftq_bits": None}
    return LoraConfig.from_fields(fields | _variant(options.variant))


def freeze_down_projections(model: nn.Module) -> None:
    """LoRA-FA (Zhang et al. 2023, arXiv:2308.03303): A stays as it is, so no input is kept."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_embedding_A" in name:
            parameter.requires_grad_(False)


def _variant(name: str) -> dict[str, Any]:
    if name not in registry().variants:
        raise ConfigError(unknown("variant", name, registry().variants))
    return LoraConfig.variant_fields(name)
