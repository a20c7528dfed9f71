"""The registry: every quantizer, variant and initializer by name, and the choice among them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

from torch import nn

from quantlora.config import LoraConfig
from quantlora.errors import BackendError, ConfigError, LayerError
from quantlora.initializer import Initializer
from quantlora.layer import LoraLayer
from quantlora.names import unknown
from quantlora.plugins import PluginRecord, Plugins, load_plugins
from quantlora.quantizer import Quantizer

T = TypeVar("T")


class Registry:
    """What the plugins offer. Built once per process by `registry`."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        offers = [
            (hook, record, item)
            for hook in _KINDS
            for record, item in plugins.collect(hook)
            if _well_typed(hook, record, item)
        ]
        self.owner: dict[tuple[str, str], PluginRecord] = {}
        for hook, record, item in offers:
            self._claim(hook, _name(hook, item), record)
        kept = [(hook, item) for hook, record, item in offers if not record.error]
        self.quantizers: dict[str, Quantizer] = _table(kept, "quantlora_quantizers")
        self.variants: dict[str, list[type[LoraLayer]]] = {}
        for hook, item in kept:
            if hook == "quantlora_layer_wrappers":
                self.variants.setdefault(item.variant, []).append(item)
        self.initializers: dict[str, Initializer] = _table(kept, "quantlora_initializers")

    def _claim(self, hook: str, name: str, record: PluginRecord) -> None:
        holder = self.owner.setdefault((hook, name), record)
        if holder is not record and not holder.error:
            record.put_aside(
                f"the name {name!r} is taken by plugin {holder.name!r} of {holder.distribution}; "
                f"QUANTLORA_DISABLE={holder.name} makes room for this one."
            )
        elif holder.error:
            self.owner[(hook, name)] = record

    # -- quantizers

    def match(self, path: str, layer: nn.Module) -> Quantizer:
        """The one quantizer whose layer this is; none or two is a `LayerError`."""
        found = self.candidates(layer)
        if len(found) == 1:
            return found[0]
        if found:
            names = " and ".join(repr(one.name) for one in found)
            raise LayerError(
                f"{path}: {_kind(layer)} is claimed by {names}; "
                f"disable one of their plugins with QUANTLORA_DISABLE."
            )
        raise LayerError(self._nobody(path, layer))

    def candidates(self, layer: nn.Module) -> list[Quantizer]:
        """All quantizers that take ``layer``; only of libraries that are imported already."""
        return [q for q in list(self.quantizers.values()) if self._takes(q, layer)]

    def _takes(self, quantizer: Quantizer, layer: nn.Module) -> bool:
        try:
            return quantizer.module in sys.modules and quantizer.matches(layer)
        except Exception as error:  # a plugin's fault, or its library's: out it goes, alone
            owner = self.owner[("quantlora_quantizers", quantizer.name)]
            owner.put_aside(f"{quantizer.name}.matches() failed: {type(error).__name__}: {error}.")
            del self.quantizers[quantizer.name]
            return False

    def quantizer(self, backend: str) -> Quantizer:
        """The quantizer of that name, with its library there."""
        if backend not in self.quantizers:
            raise BackendError(
                unknown("backend", backend, ["auto", *self.quantizers]) + self._aside()
            )
        self.quantizers[backend].require()
        return self.quantizers[backend]

    def _nobody(self, path: str, layer: nn.Module) -> str:
        tried = [q.name for q in self.quantizers.values() if q.module in sys.modules]
        asleep = [q for q in self.quantizers.values() if q.module not in sys.modules]
        lines = [
            f"{path}: no quantizer takes this layer, {_kind(layer)}.",
            f"Tried: {', '.join(tried)}.",
            *(
                f"Not tried, {q.module} is not imported: {q.name}. {q.availability_error()}"
                for q in asleep
            ),
            "If a plugin exists for this format, pip install it; else see docs/write-a-plugin.md,"
            " or leave the layer out with exclude_modules.",
        ]
        return "\n".join(line.strip() for line in lines) + self._aside()

    def _aside(self) -> str:
        return "".join(f"\nPlugin {r.name!r} is put aside: {r.error}" for r in self.plugins.aside)

    # -- variants and initializers

    def wrapper(
        self, variant: str, layer: nn.Module, quantizer: Quantizer, path: str
    ) -> type[LoraLayer]:
        """The class that puts ``variant`` on such a layer."""
        if variant not in self.variants:
            raise ConfigError(unknown("variant", variant, self.variants) + self._aside())
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
            raise ConfigError(unknown("initializer", name, self.initializers) + self._aside())
        return self.initializers[name]


_KINDS: dict[str, type] = {
    "quantlora_quantizers": Quantizer,
    "quantlora_layer_wrappers": LoraLayer,
    "quantlora_initializers": Initializer,
}


def _well_typed(hook: str, record: PluginRecord, item: Any) -> bool:
    kind, is_class = _KINDS[hook], hook == "quantlora_layer_wrappers"
    good = isinstance(item, type) and issubclass(item, kind) if is_class else isinstance(item, kind)
    if not good:
        want = f"subclasses of {kind.__name__}" if is_class else f"{kind.__name__} objects"
        record.put_aside(f"{hook}() must return {want}, got {item!r}.")
    elif not isinstance(getattr(item, "variant" if is_class else "name", None), str):
        record.put_aside(f"{hook}() returned {item!r}, which has no name.")
        return False
    return good


def _name(hook: str, item: Any) -> str:
    return str(item.variant if hook == "quantlora_layer_wrappers" else item.name)


def _table(kept: Iterable[tuple[str, Any]], hook: str) -> dict[str, Any]:
    return {item.name: item for kind, item in kept if kind == hook}


def _kind(layer: nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    stored = f" with weight {type(weight).__name__} {weight.dtype}" if weight is not None else ""
    return f"{type(layer).__module__}.{type(layer).__qualname__}{stored}"


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this environment; no hook is called again after the first time."""
    return Registry(load_plugins())


def forget() -> None:
    """Load the plugins anew next time; for tests and for sessions that install while they run."""
    registry.cache_clear()
    load_plugins.cache_clear()
