"""Packed layers are made trainable through, and taken back where `wrap` fails."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.releasing import Prepared, other_layers
from quantlora.discovery.diagnosis import diagnosed
from quantlora.errors import QuantloraError, warn
from quantlora.formats.offloaded import onloaded, read
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.layer import LoraLayer
from quantlora.wrapping.plan import PlannedLayer
from quantlora.wrapping.transaction import Transaction


class Preparing:
    """The preparation of a model for the adapter of ``plan``, within ``transaction``.

    Where that fails and the adapter would have been the first one, all of it is released. A later
    adapter's layers were prepared with the first one's, and are until the last one leaves.
    """

    def __init__(
        self, adapted: AdaptedModel, plan: list[PlannedLayer], transaction: Transaction
    ) -> None:
        self._adapted, self._plan = adapted, plan
        self._first = not adapted.state.configs
        self._done = Prepared(adapted.model)
        if self._first:
            transaction.if_it_fails(self._take_back)

    def prepare_model(self) -> None:
        """Let each format look after the model as a whole, before anything is packed."""
        layers: dict[Quantizer, dict[str, nn.Module]] = {}
        for planned in self._plan:
            if not planned.quantize and self._is_new(planned):
                layers.setdefault(planned.quantizer, {})[planned.path] = _base(planned.layer)
        for quantizer, adapted in layers.items():
            self._done.adapted[quantizer] = adapted  # first, for half of it may be done
            with diagnosed(quantizer):
                quantizer.prepare_model(self._adapted.model, adapted)

    def prepare_layers(self, bases: Mapping[str, nn.Module]) -> None:
        """Prepare ``bases``, the frozen layers by path, and those that get no adapter."""
        for planned in self._plan:
            if self._is_new(planned):
                base, quantizer = _base(bases[planned.path]), planned.quantizer
                self._done.layers.append((planned.path, base, quantizer))
                with diagnosed(quantizer), onloaded(planned.layer):
                    quantizer.prepare(base, planned.path)
        targeted = {id(planned.layer) for planned in self._plan}
        for path, layer, quantizer in other_layers(self._modules(), targeted):
            self._done.layers.append((path, layer, quantizer))
            read(quantizer.prepare, layer, path)

    def _modules(self) -> Mapping[str, nn.Module]:
        """Those of the model now: a format's `prepare_model` may have put others in place."""
        changed = any(
            type(quantizer).prepare_model is not Quantizer.prepare_model
            for quantizer in self._done.adapted
        )
        return AdaptedModel(self._adapted.model).modules if changed else self._adapted.modules

    def _is_new(self, planned: PlannedLayer) -> bool:
        return self._first or not isinstance(planned.layer, LoraLayer)

    def _take_back(self) -> None:
        try:
            self._done.release()
        except QuantloraError as error:  # the one that is raised says why `wrap` has failed
            warn(str(error))


def _base(layer: nn.Module) -> nn.Module:
    return layer.base_layer if isinstance(layer, LoraLayer) else layer
