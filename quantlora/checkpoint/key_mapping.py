"""``key_mapping``: a user's own renaming of a file's keys, as in ``from_pretrained``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from quantlora.errors import AdapterFileError, warn


class KeyMapping:
    """Expressions and what to put in their place, applied to each key one after the other."""

    def __init__(self, source: str, mapping: Mapping[str, str]) -> None:
        """``source`` is the file, for messages; raises AdapterFileError for a bad expression."""
        self.source, self.matched = source, set[str]()
        try:
            self.expressions = {re.compile(old): new for old, new in mapping.items()}
        except re.error as error:
            raise AdapterFileError(
                f"{source}: key_mapping has no valid expression: {error}"
            ) from error

    def rename(self, forms: Iterable[str]) -> str:
        """The first of a key's ``forms`` that an expression changes, renamed; else the first."""
        first = ""
        for form in forms:
            first = first or form
            if (name := self._renamed(form)) != form:
                return name
        return first

    def _renamed(self, key: str) -> str:
        for old, new in self.expressions.items():
            # from_pretrained takes "^model" and groups in what is put in, and leaves them out
            key, count = old.subn(re.sub(r"\(.*\)", "", new.lstrip("^")), key)
            if count:
                self.matched.add(old.pattern)
        return key

    def warn_of_unused(self) -> None:
        """Name the expressions that have matched no key."""
        unused = [old.pattern for old in self.expressions if old.pattern not in self.matched]
        if unused:
            warn(f"{self.source}: key_mapping: {unused} matched no key of the file.")
