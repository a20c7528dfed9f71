"""What the plugins offer, checked: a plugin is taken whole or disabled whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantlora.discovery.entry_points import DISABLE, PluginRecord, cause, kept_apart, shown
from quantlora.discovery.plugins import BUILTIN, Plugins
from quantlora.formats.model_loader import ModelLoader
from quantlora.formats.quantizer import Quantizer
from quantlora.initializers.initializer import Initializer
from quantlora.layers.layer import LoraLayer
from quantlora.requirements import AllOf, AnyOf, Requirement

QUANTIZERS = "quantlora_quantizers"
WRAPPERS = "quantlora_layer_wrappers"
INITIALIZERS = "quantlora_initializers"
LOADERS = "quantlora_loaders"

_KINDS: dict[str, type] = {
    QUANTIZERS: Quantizer,
    WRAPPERS: LoraLayer,
    INITIALIZERS: Initializer,
    LOADERS: ModelLoader,
}

#: Names with a meaning of their own where users type a quantizer's.
RESERVED = ("auto", "saved")


@dataclass(frozen=True)
class Offer:
    """One object from one plugin, under the name users will type."""

    record: PluginRecord
    hook: str
    name: str
    item: Any


class _FaultError(Exception):
    """Why a plugin is disabled."""


def _reason(error: BaseException) -> str:
    ours = isinstance(error, _FaultError)
    return str(error) if ours else f"what it offers cannot be read: {cause(error)}"


def accepted_offers(plugins: Plugins) -> list[Offer]:
    """The offers of every plugin that is without fault; ours come first, so ours keep a name."""
    kept: dict[tuple[str, str], Offer] = {}
    accepted: list[Offer] = []
    for record in plugins.loaded:
        offers: list[Offer] = []
        with kept_apart(lambda error, to=record: to.disable(_reason(error))):  # type: ignore[misc]
            offers = [
                _offer(record, hook, item)
                for hook in _KINDS
                for item in plugins.collect(record, hook)
            ]
            _check_names(offers, kept)
        if not record.error:
            kept |= {(offer.hook, offer.name): offer for offer in offers}
            accepted += offers
    return accepted


def _offer(record: PluginRecord, hook: str, item: Any) -> Offer:
    kind = _KINDS[hook]
    if hook == WRAPPERS:
        if not (isinstance(item, type) and issubclass(item, kind)):
            raise _FaultError(
                f"{hook}() must return subclasses of {kind.__name__}, got {shown(item)}."
            )
    elif not isinstance(item, kind):
        raise _FaultError(f"{hook}() must return {kind.__name__} objects, got {shown(item)}.")
    name = _text(hook, item, "variant" if hook == WRAPPERS else "name")
    if hook == QUANTIZERS:
        _check_quantizer(hook, item)
    return Offer(record, hook, name, item)


def _text(hook: str, item: Any, attribute: str) -> str:
    value = getattr(item, attribute, None)
    if not isinstance(value, str) or not value:
        raise _FaultError(
            f"{hook}() returned {shown(item)}: {attribute!r} must be a name, got {shown(value)}."
        )
    return value


def _check_quantizer(hook: str, item: Quantizer) -> None:
    _text(hook, item, "module")
    for need in item.requires:
        if not isinstance(need, (Requirement, AllOf, AnyOf)):
            raise _FaultError(f"{item.name}.requires must hold Requirement objects, got {need!r}.")


def _check_names(offers: list[Offer], kept: dict[tuple[str, str], Offer]) -> None:
    seen: set[tuple[str, str]] = set()
    for offer in offers:
        key = (offer.hook, offer.name)
        if key in kept:
            raise _FaultError(_taken(offer.name, kept[key].record))
        if offer.name in RESERVED:
            raise _FaultError(f"the name {offer.name!r} is reserved: choose another one.")
        if key in seen and offer.hook != WRAPPERS:
            raise _FaultError(f"{offer.hook}() returned the name {offer.name!r} twice.")
        seen.add(key)


def _taken(name: str, owner: PluginRecord) -> str:
    if owner.name == BUILTIN:
        return f"the name {name!r} is taken by quantlora itself: choose another one."
    return (
        f"the name {name!r} is taken by plugin {owner.name!r} of {owner.distribution}; "
        f"{DISABLE}={owner.name} makes room for this one."
    )
