"""An adapter that is to be put on a model, and where its first values come from.

An initializer is watched: whether it changes the base, and whether it says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantlora.adapters.modules_to_save import ModulesToSaveWrapper
from quantlora.config.lora_config import LoraConfig
from quantlora.errors import BackendError, ConfigError
from quantlora.experts.packed import PackedExperts
from quantlora.files.reference import Reference
from quantlora.formats.fingerprint import fingerprint, same
from quantlora.initializers.initializer import InitContext, Initializer
from quantlora.initializers.random_init import RANDOM, Default
from quantlora.layers.base_change import BaseChange, sketch
from quantlora.layers.experts import LoraExperts, experts_layout
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.layers.trained_bias import TrainedBias
from quantlora.wrapping.bases import as_linear, reference_for
from quantlora.wrapping.expert_start import start_experts
from quantlora.wrapping.expert_targets import is_random
from quantlora.wrapping.plan import PlannedLayer


@dataclass(frozen=True)
class NewAdapter(ABC):
    """Its name and settings; a subclass knows its values."""

    name: str
    config: LoraConfig

    @abstractmethod
    def start(self, planned: PlannedLayer, layer: LoraLayer) -> None:
        """Give the adapter its values on ``layer``, where A and B are zero."""

    def start_saved(self, path: str, module: ModulesToSaveWrapper) -> None:
        """The same for its copy of a module trained in full, which begins as the original."""

    def start_bias(self, bias: TrainedBias) -> None:
        """The same for a trained bias of the model, which begins as its own."""


@dataclass(frozen=True)
class FreshAdapter(NewAdapter):
    """An adapter whose values the initializer gives; ``reference`` has the original weights."""

    initializer: Initializer
    reference: Reference | None = None

    def start(self, planned: PlannedLayer, layer: LoraLayer) -> None:
        if planned.target.tokens:
            return  # they start as they are
        if isinstance(layer, LoraExperts) and not is_random(self.config):
            self._start_experts(planned, layer)
        else:
            initialize(self.initializer, layer, self._context(planned))
        layer.finish_adapter(self.name, self.config)

    def _start_experts(self, planned: PlannedLayer, layer: LoraExperts) -> None:
        """One by one where they are packed; float ones have lost nothing and start at random."""
        context = InitContext(planned.path, self.name, self.config, fresh=planned.quantize)
        Default().initialize(layer, context)
        if isinstance(layer.base_layer, PackedExperts):
            weight = self._expert_weight(planned)
            run = partial(start_experts, self.initializer, layer, context, weight)
            watched(self.initializer, layer, context, run)

    def _expert_weight(self, planned: PlannedLayer) -> Callable[[str, int], Tensor]:
        """The float matrices from before packing, ``(out, in)``."""
        module, layout = planned.layer, experts_layout(planned.layer)
        if not planned.quantize or layout is None:
            raise BackendError(
                f"{planned.path}: init_lora_weights={self.config.init_lora_weights!r} takes first "
                f"values from float experts, and these are packed already: wrap the float model "
                f"with a backend, or leave them out with target_experts=False."
            )

        def weight(name: str, expert: int) -> Tensor:
            stack: Tensor = module._parameters[name]  # type: ignore[assignment]
            found = stack.detach()[expert]
            return found.t() if layout.transposed else found

        return weight

    def _context(self, planned: PlannedLayer) -> InitContext:
        path, layer = planned.path, planned.layer
        facts = path, self.name, self.config
        if planned.quantize:
            return InitContext(*facts, lambda: as_linear(layer).weight.data, fresh=True)
        given = self.reference and partial(reference_for, self.reference, path, layer)
        return InitContext(*facts, given)


def initialize(initializer: Initializer, layer: LoraLayer, context: InitContext) -> None:
    """`Initializer.initialize`; a base that it changes is noted on the layer.

    Raises `ConfigError` where it changes the base without declaring it, in place, or under another
    adapter.
    """
    run = partial(initializer.initialize, layer, context)
    return run() if type(initializer) in RANDOM else watched(initializer, layer, context, run)


def watched(
    initializer: Initializer, layer: LoraLayer, context: InitContext, run: Callable[[], None]
) -> None:
    """``run``, the initializer's work on ``layer``, with the errors of `initialize`."""
    base, quantizer = layer.base_layer, layer.quantizer
    before = fingerprint(base)
    run()
    if not same(before, fingerprint(base)):
        raise ConfigError(
            f"{context.path}: initializer {initializer.name!r} has changed the base's tensors in "
            f"place, and they cannot be restored: load the model again. An initializer puts a new "
            f"layer at layer.base_layer (docs/plugins.md)."
        )
    if layer.base_layer is base:
        return
    if not initializer.changes_base:
        raise ConfigError(
            f"{context.path}: initializer {initializer.name!r} has put another base in place "
            f"without saying so, and files of its adapters would be wrong on the base that users "
            f"have. Its author must set changes_base = True on the class (docs/plugins.md)."
        )
    asked = str(context.config.init_lora_weights).lower()  # with its number, "pissa_niter_4"
    if others := [name for name in layer.adapters if name != context.adapter]:
        raise ConfigError(
            f"{context.path}: {initializer.name!r} changes the base, which {', '.join(others)} "
            f"uses too. Use it for the first adapter only."
        )
    experts = isinstance(layer.base_layer, PackedExperts)  # several formats, by parameter
    if not experts and not layer.quantizer.matches(layer.base_layer):
        raise ConfigError(
            f"{context.path}: initializer {initializer.name!r} has put a "
            f"{type(layer.base_layer).__name__} in place of a layer in format "
            f"{layer.quantizer.name!r}: layer.quantizer.quantize(linear, like=layer.base_layer) "
            f"gives one in it (docs/plugins.md)."
        )
    with torch.no_grad():
        change = BaseChange(
            asked if initializer.answers_to(asked) else initializer.name,
            context.adapter,
            _first_values(layer, context.adapter),
            sketch(quantizer.dequantize(base)),
            sketch(layer.quantizer.dequantize(layer.base_layer)),
        )
    layer.base_change = change.after(layer.base_change)


def _first_values(layer: LoraLayer, adapter: str) -> tuple[Tensor, Tensor] | None:
    if isinstance(layer, LoraParameters):
        return None  # those of several stacks
    tensors = layer.adapter_tensors(adapter)
    A, B = (tensors.get(f"lora_{side}.weight") for side in "AB")
    if A is None or B is None or A.ndim != 2 or B.ndim != 2:
        return None
    return A.detach().cpu().clone(), (layer.scaling[adapter] * B.detach()).cpu().clone()
