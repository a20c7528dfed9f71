"""Layers are given back as they were before adapters came: the reverse of preparing them.

While a model has an adapter, all its packed layers are prepared; with the last one that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.discovery.entry_points import cause
from quantlora.discovery.registration import registry
from quantlora.errors import BackendError
from quantlora.formats.offloaded import read
from quantlora.formats.quantizer import Quantizer
from quantlora.layers.layer import LoraLayer


@dataclass
class Prepared:
    """What formats have prepared in ``model``: layers with their paths, and the model itself."""

    model: nn.Module
    layers: list[tuple[str, nn.Module, Quantizer]] = field(default_factory=list)
    adapted: dict[Quantizer, dict[str, nn.Module]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: AdaptedModel) -> Prepared:
        """All that may be prepared in a model that has adapters."""
        prepared = cls(model.model)
        for path, layer in model.lora_layers.items():
            base, quantizer = layer.plain_base
            prepared.layers.append((path, base, quantizer))
            prepared.adapted.setdefault(quantizer, {})[path] = base
        prepared.layers += other_layers(model.modules, ())
        return prepared

    def release(self) -> None:
        """Let every format take back what it has done, also where one of them fails.

        Raises `BackendError` with the first failure, when all is done.
        """
        _tell([*self._release_layers(), *self._release_model()])

    def release_layers(self) -> None:
        """The same of layers alone, while LoRA layers without an adapter are left around them.

        What a library does to a model as a whole (unpack it at its first forward) would reach the
        layers within ours.
        """
        _tell(self._release_layers())

    def _release_layers(self) -> list[str]:
        return [
            why
            for path, layer, quantizer in reversed(self.layers)
            if (why := _failure(path, quantizer, partial(read, quantizer.release, layer)))
        ]

    def _release_model(self) -> list[str]:
        return [
            why
            for quantizer, layers in reversed(self.adapted.items())
            if (
                why := _failure(
                    "the model", quantizer, partial(quantizer.release_model, self.model, layers)
                )
            )
        ]


def other_layers(
    modules: Mapping[str, nn.Module], targeted: Iterable[int]
) -> Iterator[tuple[str, nn.Module, Quantizer]]:
    """Layers without an adapter, each with its format; those with an id in ``targeted`` left out.

    Gradients pass through them to the layers below.
    """
    known = set(targeted)
    for path, module in modules.items():
        if id(module) not in known and not isinstance(module, LoraLayer):
            for quantizer in registry().candidates(module):
                yield path, module, quantizer


def _tell(failures: list[str]) -> None:
    if failures:
        raise BackendError(failures[0])


def _failure(path: str, quantizer: Quantizer, release: Callable[[], object]) -> str:
    """What to say where ``release`` raises; else empty."""
    try:
        release()
    except Exception as error:
        return (
            f"{path}: format {quantizer.name!r} cannot take back what it did for the adapters: "
            f"{cause(error)} The adapters are gone; load the model again before you use it."
        )
    return ""
