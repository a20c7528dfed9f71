"""``quantize_options``: what a format takes, and one error for all that it does not take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from quantlora.errors import BackendError

if TYPE_CHECKING:
    from quantlora.formats.quantizer import Quantizer

#: Arguments that are no settings.
_OTHERS = ("self", "linear", "like", "model", "layers")


def option_names(quantizer: Quantizer) -> list[str]:
    """The settings by name: those declared, named arguments of ``quantize``, ``bits``."""
    kind = type(quantizer)
    bits = ("bits",) if len(quantizer.bits) > 1 else ()
    named = (*_named(kind.quantize), *_named(kind.quantize_layers))
    return list(dict.fromkeys((*quantizer.options, *bits, *named)))


def checked_options(quantizer: Quantizer, options: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` as ``quantize`` takes them: a format of one width is not told it.

    Raises:
        BackendError: there is no such setting, or the format does not pack to such ``bits``.
    """
    names = option_names(quantizer)
    for name in options:
        if name not in names and not (name == "bits" and quantizer.bits):
            raise BackendError(
                f"backend {quantizer.name!r} has no option {name!r}; its options are "
                f"{', '.join(names) or 'none'}."
            )
    if "bits" in options and quantizer.bits and options["bits"] not in quantizer.bits:
        raise BackendError(
            f"backend {quantizer.name!r}: Only support {', '.join(map(str, quantizer.bits))} bits "
            f"quantization, got bits={options['bits']!r}."
        )
    return {name: value for name, value in options.items() if name in names}


def _named(function: Callable[..., Any]) -> Iterator[str]:
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in _OTHERS and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            yield name
