"""The shortest names that pick some layers and no other module, for ``target_modules``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.config.lora_config import LoraConfig
from quantlora.config.picked_paths import is_all_linear
from quantlora.layers.layer import LoraLayer
from quantlora.layers.parameters import LoraParameters
from quantlora.layers.trained_tokens import TrainedTokens
from quantlora.names import plain_path


def written_targets(
    adapted: AdaptedModel, config: LoraConfig, adapter: str
) -> list[str] | str | None:
    """What to write as ``target_modules``: PEFT resolves "all-linear" when it saves, so do we.

    A reader that finds other layers linear than we do would else target other layers.
    """
    if not is_all_linear(config):
        targets = config.target_modules
        return sorted(targets) if isinstance(targets, list) else targets
    modules = [(plain_path(path), module) for path, module in adapted.modules.items() if path]
    chosen = {path for path, module in modules if _has(module, adapter)}
    return minimal_names(chosen, (path for path, _ in modules if path not in chosen))


def minimal_names(paths: Iterable[str], others: Iterable[str]) -> list[str]:
    """For each path its shortest ending that is the ending of none of ``others``."""
    taken = {ending for path in others for ending in _endings(path)}
    names = {next((end for end in _endings(path) if end not in taken), path) for path in paths}
    return sorted(names)


def _endings(path: str) -> Sequence[str]:
    """``a.b.c`` as ``c``, ``b.c``, ``a.b.c``."""
    parts = path.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _has(module: nn.Module, adapter: str) -> bool:
    """Whether ``module`` is a layer of ``adapter`` that no other setting names."""
    if not isinstance(module, LoraLayer) or isinstance(module, (LoraParameters, TrainedTokens)):
        return False
    return adapter in module.adapters
