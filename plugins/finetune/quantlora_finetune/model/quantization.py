"""Which format the weights are to have: the one asked for, or the best one here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantlora import Quantizer, best_quantizer, registry
from quantlora.errors import BackendError
from quantlora_finetune.options.finetune_options import FinetuneOptions

AUTO, FLOAT = "auto", "float"
#: `--bits` that no weight is packed to.
UNPACKED_BITS = 16
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
        _check_bits_of_quantized(options)
        return Format(AUTO, {})
    if options.backend == AUTO:
        return Format(AUTO, {})
    if options.backend in (None, FLOAT) and options.bits == UNPACKED_BITS:
        return Format(FLOAT, {})
    if options.backend is None:
        bits = options.bits or DEFAULT_BITS
        chosen = best_quantizer(bits)
        return Format(chosen.name, _settings(chosen, bits))
    chosen = registry().quantizer(options.backend)
    return Format(chosen.name, _settings(chosen, options.bits))


def _check_bits_of_quantized(options: FinetuneOptions) -> None:
    if options.bits is not None:
        raise BackendError(
            f"--bits {options.bits}: the model is quantized already and is taken as it is. Leave "
            f"--bits out, or name the float model."
        )


def _settings(quantizer: Quantizer, bits: int | None) -> dict[str, Any]:
    """``bits``, where there is a choice to be told."""
    if bits is None or quantizer.bits == (bits,):
        return {}
    if bits not in quantizer.bits:
        offered = ", ".join(map(str, quantizer.bits))
        other = f"it packs to {offered}" if offered else "it does not pack to whole bits"
        raise BackendError(f"backend {quantizer.name!r} does not offer {bits} bits: {other}.")
    return {"bits": bits}
