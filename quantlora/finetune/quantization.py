"""Which format the weights are to have: the one asked for, or the best one here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantlora.discovery.registration import registry
from quantlora.errors import BackendError
from quantlora.finetune.options import FinetuneOptions
from quantlora.formats.quantizer import Quantizer
from quantlora.wrapping.plan import AUTO

#: What models are quantized to where nothing is said.
DEFAULT_BITS = 4


@dataclass(frozen=True)
class Format:
    """A backend, and the settings to quantize with."""

    backend: str
    options: dict[str, Any]


def choose_format(options: FinetuneOptions, is_quantized: bool) -> Format:
    """The backend that ``options`` ask for, or the best installed one that offers their bits.

    Raises:
        BackendError: it is unknown, or no backend offers that many bits.
        MissingLibraryError: its library is not installed.
    """
    if options.backend is None and is_quantized:
        return Format(AUTO, {})
    if options.backend == AUTO:
        return Format(AUTO, {})
    if options.backend is None:
        bits = options.bits or DEFAULT_BITS
        chosen = best_quantizer(list(registry().quantizers.values()), bits)
        return Format(chosen.name, _settings(chosen, bits))
    chosen = registry().quantizer(options.backend)
    return Format(chosen.name, _settings(chosen, options.bits))


def best_quantizer(quantizers: list[Quantizer], bits: int) -> Quantizer:
    """The installed one with the highest ``preference`` of those that pack to ``bits`` bits."""
    able = [one for one in quantizers if one.can_quantize and bits in one.bits]
    here = [one for one in able if not one.availability_error()]
    if here:
        return min(here, key=lambda one: (-one.preference, one.name))
    if able:
        missing = "\n".join(f"{one.name}: {one.availability_error()}" for one in able)
        raise BackendError(f"no backend for {bits} bits is installed. Install one:\n{missing}")
    offers = {n for one in quantizers if one.can_quantize for n in one.bits}
    offered = ", ".join(map(str, sorted(offers)))
    raise BackendError(f"no backend quantizes to {bits} bits; offered: {offered or 'none'}.")


def _settings(quantizer: Quantizer, bits: int | None) -> dict[str, Any]:
    """``bits``, where there is a choice to be told."""
    if bits is None or quantizer.bits == (bits,):
        return {}
    if bits not in quantizer.bits:
        offered = ", ".join(map(str, quantizer.bits)) or "none: it does not pack to whole bits"
        raise BackendError(f"backend {quantizer.name!r} does not offer {bits} bits, but {offered}.")
    return {"bits": bits}
