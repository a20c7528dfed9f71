"""Names in ``target_modules`` that pick nothing, beside others that do: said, not passed over.

A misspelt name, or one of a projection that a mixture holds in its fused experts, would leave
layers without an adapter and nobody told.
"""

from __future__ import annotations

from collections.abc import Iterable

from quantlora.config.lora_config import LoraConfig
from quantlora.names import plain_path
from quantlora.suggestions import near, some
from quantlora.wrapping.target import Target
from quantlora.wrapping.targets import Search
from quantlora.wrapping.without_adapter import ends, without_adapter

#: For so many names near ones are looked for.
_HINTS = 3


def unmatched_notice(search: Search, targets: Iterable[Target]) -> str:
    """One sentence about the names that are the end of no module's path; empty where all are."""
    paths = [plain_path(path) for path in search.modules]
    names = _unmatched(search.config, paths)
    if not names:
        return ""
    ends_of_paths = {path.rpartition(".")[2] for path in paths} - {""}
    real = sorted(end for end in ends_of_paths if not end.isdigit())
    close = dict.fromkeys(found for name in names[:_HINTS] for found in near(name, real))
    hint = f" Near names: {', '.join(close)}." if close else ""
    if left := without_adapter(search, targets):
        hint += (
            f" The model's fused experts are parameters and get no adapter: name them by "
            f'target_parameters={ends(left)}, or use target_modules="all-linear".'
        )
    return f"target_modules {some(map(repr, names))} match no module of this model.{hint}"


def _unmatched(config: LoraConfig, paths: Iterable[str]) -> list[str]:
    names = config.target_modules
    if names is None or isinstance(names, str):
        return []
    parts = [path.split(".") for path in paths]
    endings = {".".join(part[start:]) for part in parts for start in range(len(part))}
    return [name for name in names if name not in endings]
