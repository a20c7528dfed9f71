"""Which paths a config's names pick, as PEFT matches them."""

from __future__ import annotations

from quantlora.config.expressions import full_match, match
from quantlora.config.lora_config import LoraConfig

ALL_LINEAR = "all-linear"


def is_all_linear(config: LoraConfig) -> bool:
    targets = config.target_modules
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def targeted(path: str, config: LoraConfig) -> bool:
    """Whether the names in ``config`` pick ``path``; "all-linear" picks every path here."""
    return TargetNames(config).pick(path)


class TargetNames:
    """What a config's names pick. Made once for all paths: files come with a million names."""

    def __init__(self, config: LoraConfig) -> None:
        self._config = config
        self.all_linear = is_all_linear(config)
        self._targets = _lookup(config.target_modules)
        self._excluded = _lookup(config.exclude_modules)

    def allow(self, path: str) -> bool:
        """Whether nothing takes ``path`` out: it is not excluded, and not trained in full."""
        saved = self._config.modules_to_save or ()
        if any(match(rf"(^|.*\.){name}($|\..*)", path) for name in saved):
            return False
        return not _named(path, self._excluded)

    def pick(self, path: str) -> bool:
        if not self.allow(path):
            return False
        if self.all_linear:
            return True
        if not _named(path, self._targets):
            return False
        whole = isinstance(self._targets, str) or path in self._targets
        return whole or _index_wanted(path, self._config)


def _lookup(names: list[str] | str | None) -> frozenset[str] | str:
    return names if isinstance(names, str) else frozenset(names or ())


def _named(path: str, names: frozenset[str] | str) -> bool:
    """An expression matches the path; a name is the path or one of its endings."""
    if isinstance(names, str):
        return bool(names) and full_match(names, path) is not None
    parts = path.split(".")
    return any(".".join(parts[start:]) in names for start in range(len(parts)))


def _index_wanted(path: str, config: LoraConfig) -> bool:
    """PEFT's ``layers_to_transform``: the first numbered segment of the path is the index."""
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    given = config.layers_pattern or []
    patterns = [given] if isinstance(given, str) else given
    forms = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns] or [r".*?\.[^.]*\.(\d+)\."]
    found = next((matched for form in forms if (matched := match(form, path))), None)
    indices = [wanted] if isinstance(wanted, int) else wanted
    return found is not None and int(found.group(1)) in indices
