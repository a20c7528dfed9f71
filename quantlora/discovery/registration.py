"""The registry: every quantizer, variant and initializer by name, and the choice among them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import nn

from quantlora import requirements
from quantlora.config.lora_config import LoraConfig
from quantlora.discovery.entry_points import PluginRecord, cause, kept_apart
from quantlora.discovery.offers import (
    INITIALIZERS,
    LOADERS,
    QUANTIZERS,
    WRAPPERS,
    accepted_offers,
)
from quantlora.discovery.plugins import BUILTIN, Plugins, load_plugins
from quantlora.errors import BackendError, ConfigError, LayerError
from quantlora.formats.model_loader import LoadRequest, ModelLoader
from quantlora.formats.quantizer import Quantizer
from quantlora.initializers.initializer import Initializer
from quantlora.layers.layer import LoraLayer
from quantlora.suggestions import unknown

#: The user's word for "each layer in the format that it is in".
AUTO = "auto"


class Registry:
    """What the plugins offer. Built once per process by `registry`."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self.offers = accepted_offers(plugins)
        self._tabulate()

    def _tabulate(self) -> None:
        self.offers = [offer for offer in self.offers if not offer.record.error]
        self.quantizers: dict[str, Quantizer] = self._by_name(QUANTIZERS)
        self.initializers: dict[str, Initializer] = self._by_name(INITIALIZERS)
        self.loaders: dict[str, ModelLoader] = self._by_name(LOADERS)
        self.variants: dict[str, list[type[LoraLayer]]] = {}
        for offer in self.offers:
            if offer.hook == WRAPPERS:
                self.variants.setdefault(offer.name, []).append(offer.item)

    def _by_name(self, hook: str) -> dict[str, Any]:
        return {offer.name: offer.item for offer in self.offers if offer.hook == hook}

    def _owner(self, item: Quantizer | ModelLoader) -> PluginRecord:
        return next(offer.record for offer in self.offers if offer.item is item)

    # -- quantizers

    def match(self, path: str, layer: nn.Module) -> Quantizer:
        """The one quantizer whose layer this is; none or two is a `LayerError`."""
        found = self.candidates(layer)
        if len(found) == 1:
            return found[0]
        if found:
            raise LayerError(self._several(path, layer, found))
        raise LayerError(self._nobody(path, layer))

    def candidates(self, layer: nn.Module) -> list[Quantizer]:
        """All quantizers that take ``layer``; only of libraries that are imported already."""
        return [q for q in list(self.quantizers.values()) if self._takes(q, layer)]

    def packed_format(self, layer: nn.Module) -> Quantizer | None:
        """The first format that ``layer`` is packed in; None for a float module."""
        return next(
            (quantizer for quantizer in self.candidates(layer) if not quantizer.is_float), None
        )

    def _takes(self, quantizer: Quantizer, layer: nn.Module) -> bool:
        takes = False
        with kept_apart(lambda error: self._blame(quantizer, "matches", _layers(layer), error)):
            takes = quantizer.imported and bool(quantizer.matches(layer))
        return takes

    def _blame(
        self, item: Quantizer | ModelLoader, method: str, what: str, error: BaseException
    ) -> None:
        """A plugin's fault, or its library's: it is left out of this case. Ours blames the case."""
        owner = self._owner(item)
        if owner.name != BUILTIN:
            owner.disable_for(what, f"{item.name}.{method}() failed: {cause(error)}")

    def quantizer(self, backend: str) -> Quantizer:
        """The quantizer of that name, with its library there."""
        if backend not in self.quantizers:
            elsewhere = {alias: q.name for q in self.quantizers.values() for alias in q.also_called}
            text = unknown("backend", backend, [AUTO, *self.quantizers], elsewhere)
            raise BackendError(text + self._disabled())
        self.quantizers[backend].require()
        return self.quantizers[backend]

    def asked(self, backend: str) -> Quantizer | None:
        """The format that a user asks for by ``backend=``; None for `AUTO`."""
        return None if backend == AUTO else self.quantizer(backend)

    def _several(self, path: str, layer: nn.Module, found: list[Quantizer]) -> str:
        owners = {quantizer.name: self._owner(quantizer).name for quantizer in found}
        names = " and ".join(f"{name!r} (plugin {owner!r})" for name, owner in owners.items())
        ways = [f"QUANTLORA_DISABLE={owner}" for owner in owners.values() if owner != BUILTIN]
        return (
            f"{path}: {_kind(layer)} is claimed by {names}. "
            f"Exactly one must take it: set {' or '.join(dict.fromkeys(ways))}."
        )

    def _nobody(self, path: str, layer: nn.Module) -> str:
        tried = [q.name for q in self.quantizers.values() if q.imported]
        asleep = [q for q in self.quantizers.values() if not q.imported]
        lines = [
            f"{path}: no quantizer takes this layer, {_kind(layer)}.",
            f"Tried: {', '.join(tried)}.",
            *(
                f"Not tried, {q.module} is not imported: {q.name}. {q.availability_error()}"
                for q in asleep
            ),
            "If a plugin exists for this format, pip install it; else see docs/plugins.md,"
            " or leave the layer out with exclude_modules.",
        ]
        told = self._disabled_for(_layers(layer)) + self._disabled()
        return "\n".join(line.strip() for line in lines) + told

    def _disabled(self) -> str:
        return "".join(f"\nPlugin {r.name!r} is disabled: {r.error}" for r in self.plugins.disabled)

    def _disabled_for(self, what: str) -> str:
        faults = [
            (r.name, error) for r in self.plugins.loaded for w, error in r.faults if w == what
        ]
        return "".join(f"\nPlugin {name!r} is disabled for {what}: {why}" for name, why in faults)

    # -- loaders

    def claims(self, loader: ModelLoader, request: LoadRequest) -> bool:
        """Whether the file of ``request`` is one that ``loader`` loads."""
        claimed = False
        with kept_apart(lambda error: self._blame(loader, "claims", "this model's files", error)):
            claimed = bool(loader.claims(request))
        return claimed

    # -- variants and initializers

    def wrapper(
        self, variant: str, layer: nn.Module, quantizer: Quantizer, path: str
    ) -> type[LoraLayer]:
        """The class that puts ``variant`` on such a layer."""
        if variant not in self.variants:
            raise ConfigError(unknown("variant", variant, self.variants) + self._disabled())
        for wrapper in self.variants[variant]:
            if wrapper.accepts(layer, quantizer):
                return wrapper
        raise LayerError(
            f"{path}: variant {variant!r} cannot be put on {_kind(layer)} "
            f"in format {quantizer.name!r}."
        )

    def initializer(self, config: LoraConfig) -> Initializer:
        """The one that ``init_lora_weights`` names; True and False are LoRA's own."""
        chosen = config.init_lora_weights
        name = {True: "default", False: "uniform"}[chosen] if isinstance(chosen, bool) else chosen
        if name not in self.initializers:
            name = name.lower()  # PEFT takes "Gaussian" and "OLoRA" too
        if name not in self.initializers:
            for initializer in self.initializers.values():
                if initializer.answers_to(name):
                    return initializer
            raise ConfigError(unknown("initializer", name, self.initializers) + self._disabled())
        return self.initializers[name]


def _kind(layer: nn.Module) -> str:
    weight = layer._parameters.get("weight", layer._buffers.get("weight"))
    with_weight = (
        f" with weight {type(weight).__name__} {weight.dtype}" if weight is not None else ""
    )
    return f"{type(layer).__module__}.{type(layer).__qualname__}{with_weight}"


def _layers(layer: nn.Module) -> str:
    return f"layers of {_kind(layer)}"


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this environment; no hook is called again after the first time."""
    return Registry(load_plugins())


def best_quantizer(*bits: int) -> Quantizer:
    """Of the installed formats that pack to each of ``bits``: the highest ``preference``.

    Formats of the same preference are taken by name, so the choice never depends on the order of
    plugins.

    Raises:
        BackendError: no format offers these bits, or none that does is installed.
    """
    return _best(registry().quantizers.values(), bits)


def _best(quantizers: Iterable[Quantizer], bits: tuple[int, ...]) -> Quantizer:
    packing = sorted(
        (q for q in quantizers if q.can_quantize), key=lambda q: (-q.preference, q.name)
    )
    able = [quantizer for quantizer in packing if set(bits) <= set(quantizer.bits)]
    for quantizer in able:
        if not quantizer.availability_error():
            return quantizer
    wanted = " and ".join(map(str, bits))
    if able:
        missing = "\n".join(
            f"{quantizer.name}: {quantizer.availability_error()}" for quantizer in able
        )
        raise BackendError(f"no backend for {wanted} bits is installed. Install one:\n{missing}")
    offered = ", ".join(map(str, sorted({n for quantizer in packing for n in quantizer.bits})))
    raise BackendError(f"no backend quantizes to {wanted} bits; offered: {offered or 'none'}.")


def forget_plugins() -> None:
    """Look for plugins, and for the libraries they need, anew the next time either is asked for.

    For sessions that install while they run, and for tests. Models wrapped before keep their
    quantizers; a module that is imported already stays as it is.
    """
    importlib.invalidate_caches()
    requirements.forget()
    registry.cache_clear()
    load_plugins.cache_clear()
