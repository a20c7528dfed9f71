"""What ``run.json`` has to hold for a run to be resumed, and what is said where it does not."""

from __future__ import annotations

import typing
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any

from quantlora.errors import ConfigError, FinetuneError
from quantlora_finetune.options.finetune_options import FinetuneOptions, renamed

#: Fields by their path; those of the options are `FinetuneOptions`' own.
_KINDS: dict[str, Any] = {
    "options": dict,
    "data": str,
    "before": dict,
    "before.perplexity": float,
    "before.prompt": str,
    "before.continuation": str,
}
#: What JSON calls the types of Python.
_WORDS = {
    dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number",
    bool: "true or false", NoneType: "null",
}  # fmt: skip


def started_with(file: Path, record: dict[str, Any]) -> FinetuneOptions:
    """The options in ``record``, the content of ``file``, all of which is fit to be resumed.

    Raises:
        FinetuneError: a field is missing, or of another type, or beyond its limits.
    """
    for path, kind in _KINDS.items():
        _check(file, path, _at(record, path), kind)
    if "model" in record:
        _check(file, "model", record["model"], str)
    hints = typing.get_type_hints(FinetuneOptions)
    for given, value in record["options"].items():
        name = renamed(given)
        if name not in hints:
            raise _damaged(file, f"options.{name} is no option of this version")
        _check(file, f"options.{name}", value, hints[name])
    try:
        return FinetuneOptions.from_json(record["options"])
    except ConfigError as error:
        raise _damaged(file, f"options: {str(error).rstrip('.')}") from error


def _at(record: dict[str, Any], path: str) -> Any:
    found: Any = record
    for key in path.split("."):
        found = found.get(key, ...)
    return found


def _check(file: Path, path: str, value: Any, hint: Any) -> None:
    if value is ...:
        raise _damaged(file, f"{path} is missing")
    kinds = typing.get_args(hint) or (hint,)
    if not any(_fits(value, kind) for kind in kinds):
        wanted = " or ".join(_word(kind) for kind in kinds)
        raise _damaged(file, f"{path} is {_word(type(value))} ({value!r:.60}), not {wanted}")


def _fits(value: Any, kind: Any) -> bool:
    if issubclass(kind, Enum):
        return value in [choice.value for choice in kind]
    if issubclass(kind, Path):
        return type(value) is str
    return type(value) is kind or (kind is float and type(value) is int)


def _word(kind: Any) -> str:
    if issubclass(kind, Enum):
        return "one of " + ", ".join(str(choice.value) for choice in kind)
    return _WORDS[str if issubclass(kind, Path) else kind]


def _damaged(file: Path, fault: str) -> FinetuneError:
    return FinetuneError(
        f"{file} is damaged: {fault}. Correct it there, or start anew with another --output."
    )
