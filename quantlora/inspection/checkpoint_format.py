"""The format a checkpoint is stored in, from ``quantization_config`` in its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from quantlora.discovery.registration import AUTO, registry

#: Config keys that list the layers left float.
_SKIPPED = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore")


@dataclass(frozen=True)
class CheckpointFormat:
    """How the checkpoint's linear layers are stored.

    Args:
        name: the quantizer that reads it, by Transformers' name.
        settings: what the config says of it: bits, group size and so on.
        skipped: ends of the paths of layers that are left float.
    """

    name: str
    settings: Mapping[str, Any]
    skipped: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: PretrainedConfig) -> CheckpointFormat | None:
        """None for a float checkpoint."""
        found = getattr(config, "quantization_config", None)
        if found is None:
            return None
        fields = dict(found) if isinstance(found, Mapping) else dict(found.to_dict())
        skipped = [name for key in _SKIPPED for name in fields.get(key) or ()]
        return cls(_name(fields), _plain(fields), tuple(skipped))

    def covers(self, path: str) -> bool:
        """Whether the layer at ``path`` is stored in this format."""
        parts = path.split(".")
        return not any(name in path if "." in name else name in parts for name in self.skipped)

    def problem(self, backend: str) -> str:
        """Why it cannot be loaded and wrapped so here, with the fix; empty when it can."""
        if backend not in (AUTO, self.name):
            return (
                f"backend={backend!r} was asked for, but the checkpoint is in format "
                f"{self.name!r}: use the auto backend, or the original float model."
            )
        quantizer = registry().quantizers.get(self.name)
        if quantizer is not None:
            return quantizer.availability_error()
        disabled = [
            f"Plugin {plugin.name!r} is disabled: {plugin.error}"
            for plugin in registry().plugins.disabled
        ]
        return "\n".join([f"no plugin reads format {self.name!r}.", *disabled])


def _name(fields: Mapping[str, Any]) -> str:
    """Transformers' key: its one method with two formats is told apart by a flag."""
    method = fields.get("quant_method", "unknown")
    name = str(getattr(method, "value", method))
    for bits in (4, 8):
        if fields.get(f"load_in_{bits}bit") or fields.get(f"_load_in_{bits}bit"):
            return f"{name}_{bits}bit"
    return name


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in fields.items() if not key.startswith("_")}
    plain = {key: value for key, value in kept.items() if isinstance(value, (bool, int, str))}
    return {key: value for key, value in plain.items() if key != "quant_method"}
