"""The format to quantize to where the user leaves the choice to us."""

from __future__ import annotations

from collections.abc import Iterable

from quantlora.discovery.registration import registry
from quantlora.errors import BackendError
from quantlora.formats.quantizer import Quantizer


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
