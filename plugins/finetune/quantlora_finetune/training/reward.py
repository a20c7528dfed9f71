"""``--reward``: the function that says how good an answer is, for GRPO.

There is no default: what a good answer is, only whoever trains can say.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from quantlora.errors import ConfigError, FinetuneError
from quantlora.suggestions import near

Reward = Callable[..., Sequence[float]]


def reward_function(given: str) -> Reward:
    """The function that ``module:function`` or ``file.py:function`` names, its results checked.

    It is called as TRL calls it: with ``prompts``, ``completions`` and each column of the data, as
    lists of the same length.

    Raises:
        ConfigError: there is no such module, file or function.
    """
    source, colon, name = given.rpartition(":")
    if not (source and colon and name.isidentifier()):
        raise ConfigError(f"--reward is module:function or file.py:function, got {given}.")
    module = _module(source)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        close = near(name, functions) or functions[:3]
        raise ConfigError(
            f"--reward: there is no function {name} in {source}; there are "
            f"{', '.join(close) or 'none'}."
        )
    return _checked(found)


def _module(source: str) -> ModuleType:
    path = Path(source).expanduser()
    try:
        if path.suffix == ".py":
            return _file(path)
        sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(source)
        finally:
            sys.path.remove(str(Path.cwd()))
    except Exception as error:  # it runs code of the user's
        raise ConfigError(
            f"--reward: {source} cannot be imported: {type(error).__name__}: {error}."
        ) from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (looked in {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checked(function: Callable[..., Any]) -> Reward:
    """``function``, whose result has to be a finite number for each completion."""

    @functools.wraps(function)
    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        found = list(function(completions=completions, **columns))
        numbers = [value for value in found if isinstance(value, int | float)]
        if len(found) != len(completions) or len(numbers) < len(found):
            raise FinetuneError(
                f"--reward: {function.__name__} gave {found!r:.60} for {len(completions)} answers: "
                f"it has to return a list with a number for each."
            )
        if not all(map(math.isfinite, numbers)):
            raise FinetuneError(f"--reward: {function.__name__} gave {found!r:.60}: no numbers.")
        return [float(value) for value in numbers]

    return reward
