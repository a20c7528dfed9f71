"""What a model says about the checkpoint it comes from, and whether that was read right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantlora import BackendError
from quantlora_gptq.layout import stored_bits
from quantlora_gptq.requires import LIBRARIES, library_of, wrong_reading


def check_reading(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise where the layers' library cannot be used, or is known to read this checkpoint wrong.

    Raises:
        MissingLibraryError: its version is not supported, or what it needs is missing.
        BackendError: its version reads checkpoints of this format and width wrong.
    """
    for library in {library_of(layer) for layer in layers.values()} - {None}:
        LIBRARIES[str(library)].check().require()
    written_as = checkpoint_format(model)
    if written_as is None:
        return
    for path, layer in layers.items():
        library = library_of(layer)
        version = _version(library)
        if library is None or version is None or getattr(layer, "qweight", None) is None:
            continue
        bits = stored_bits(layer)
        if wrong := wrong_reading(library, version, written_as, bits):
            raise BackendError(
                f"{path}: {library} {version} reads {bits}-bit checkpoints of the format "
                f"{written_as!r} wrong: {wrong.reason}. Fix it with: {wrong.fix}"
            )


def checkpoint_format(model: nn.Module) -> str | None:
    """``"gptq"`` (v1) or ``"gptq_v2"``, as the config says; None where there is no config."""
    for owner in (getattr(model, "config", None), model):
        for name in ("quantization_config", "quantize_config"):
            config = getattr(owner, name, None)
            if config is not None:
                return _format(config)
    return None


def _format(config: Any) -> str:
    """Configs without the field are from before v2."""
    fields = config if isinstance(config, Mapping) else vars(config)
    value = fields.get("checkpoint_format") or fields.get("format") or "gptq"
    return str(getattr(value, "value", value))


def _version(library: str | None) -> str | None:
    if library is None:
        return None
    found = LIBRARIES[library].check()
    return found.version.split(",")[0] if found.version else None
