"""Finding plugins: every entry point of the group, loaded alone.

One plugin that cannot be imported, or one distribution whose metadata is broken, leaves the rest
as they are: it becomes a `PluginRecord` with its reason.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from quantlora import hookspecs
from quantlora.errors import PluginWarning, warn

#: Comma-separated plugin names that are not to be loaded.
DISABLE = "QUANTLORA_DISABLE"

UNKNOWN = "unknown"


@dataclass
class PluginRecord:
    """One plugin: where it comes from and, if it was disabled, why.

    ``faults`` are the layers and files that it is disabled for, each with the reason.
    """

    name: str
    distribution: str
    version: str
    value: str
    error: str = ""
    module: Any = field(default=None, repr=False)
    faults: list[tuple[str, str]] = field(default_factory=list, repr=False)

    @property
    def api(self) -> Any:
        """The API the plugin says it was written for; checked before it is admitted."""
        api = None
        with kept_apart(lambda error: None):
            api = getattr(self.module, "QUANTLORA_API", hookspecs.API_VERSION)
        return api

    def disable(self, error: str) -> None:
        """Take the plugin out of use; only the first reason is kept and warned about."""
        if self.error:
            return
        self.error = error
        self._say(f"disabled: {error}")

    def disable_for(self, what: str, error: str) -> None:
        """Leave the plugin out where ``what`` is concerned, and say so, once for each reason."""
        if (what, error) not in self.faults:
            self.faults.append((what, error))
            self._say(f"disabled for {what}: {error}")

    def _say(self, what: str) -> None:
        message = (
            f"quantlora plugin {self.name!r} ({self.value}, from {self.distribution} "
            f"{self.version}) is {what} Everything else works on; "
            f"{DISABLE}={self.name} silences this."
        )
        try:
            warn(message, PluginWarning)
        except PluginWarning:  # -W error: said all the same, but nothing else stops for it
            print(f"{PluginWarning.__name__}: {message}", file=sys.stderr)


@contextmanager
def kept_apart(blame: Callable[[BaseException], object]) -> Iterator[None]:
    """Give ``blame`` what a plugin's code raises within the block, whatever it is.

    Only the user's Ctrl-C goes on: Rust's panics, say, are no `Exception`.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        blame(error)


def text_of(error: BaseException) -> str:
    """``str(error)``, also where that raises."""
    text = ""
    with kept_apart(lambda error: None):
        text = str(error)
    return text


def shown(item: Any) -> str:
    """``repr(item)``, also where that raises."""
    text = f"an object of {type(item).__name__}"
    with kept_apart(lambda error: None):
        text = repr(item)
    return text


def sentence(error: BaseException) -> str:
    """The error's text on one line, without its full stop."""
    return " ".join(text_of(error).split()).rstrip(".") or type(error).__name__


def cause(error: BaseException) -> str:
    """The error's class and text."""
    return f"{type(error).__name__}: {sentence(error)}."


def find_plugins() -> list[PluginRecord]:
    """All plugins of this environment, ours first, then by distribution and name.

    Entry points come in no defined order, so none is kept.
    """
    unique = {(entry.name, entry.value): entry for entry in _entry_points()}
    records = [*(_load(entry) for entry in unique.values()), *_unreadable()]
    return sorted(records, key=lambda r: (r.distribution != "quantlora", r.distribution, r.name))


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    try:
        return importlib.metadata.entry_points(group=hookspecs.GROUP)
    except Exception:  # one distribution's broken file stops this call for all: read them singly
        found = (entry for dist in importlib.metadata.distributions() for entry in _entries(dist))
        return [entry for entry in found if entry.group == hookspecs.GROUP]


def _entries(dist: importlib.metadata.Distribution) -> Iterable[importlib.metadata.EntryPoint]:
    try:
        return dist.entry_points
    except Exception:
        return ()


def _unreadable() -> Iterator[PluginRecord]:
    """Distributions that mention our group in an ``entry_points.txt`` that cannot be parsed."""
    for dist in importlib.metadata.distributions():
        try:
            text = dist.read_text("entry_points.txt") or ""
        except Exception:  # not even text: nothing says that it is ours
            continue
        if f"[{hookspecs.GROUP}]" in text and not _entries(dist):
            name, version = _identity(dist)
            record = PluginRecord(name, name, version, "entry_points.txt")
            record.disable("its entry_points.txt cannot be read: reinstall that distribution.")
            yield record


def _identity(dist: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version; ``unknown`` where the metadata do not say."""
    try:
        return str(dist.metadata["Name"] or UNKNOWN), str(dist.version or UNKNOWN)  # type: ignore[union-attr]
    except Exception:
        return UNKNOWN, UNKNOWN


def _load(entry: importlib.metadata.EntryPoint) -> PluginRecord:
    record = PluginRecord(entry.name, *_identity(entry.dist), entry.value)
    if entry.name in _disabled():
        record.error = f"disabled by {DISABLE}."
        return record
    with kept_apart(lambda error: record.disable(f"it cannot be imported: {cause(error)}")):
        record.module = entry.load()
    return record


def _disabled() -> set[str]:
    return {name.strip() for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
