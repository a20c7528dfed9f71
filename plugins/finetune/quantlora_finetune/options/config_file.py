"""``--config FILE``: options from a file, before those that are typed.

YAML or JSON, with an option's name for each value. A run's own run.json is one too: it repeats
the run.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlora.errors import ConfigError
from quantlora.requirements import Requirement

OPTION = "--config"
_YAML = Requirement("pyyaml>=5", fix="pip install pyyaml")
#: Of a run.json: where that run went to is no setting of the next.
_RUNS_OWN = ("output", "resume")


def with_config(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with the options of the file in place of ``--config FILE``, and first.

    Raises:
        ConfigError: the file cannot be read, or a value is no option's.
    """
    left, found = list(arguments), list[str]()
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == OPTION and (equals or i + 1 < len(arguments)):
            used = 1 if equals else 2
            found += _options(Path(value if equals else arguments[i + 1]).expanduser())
            del left[left.index(argument) : left.index(argument) + used]
    return [*found, *left]


def _options(file: Path) -> list[str]:
    values = _read(file)
    if isinstance(values.get("options"), Mapping):  # a run.json
        values = {k: v for k, v in values["options"].items() if k not in _RUNS_OWN}
    return [word for name, value in values.items() for word in _words(file, str(name), value)]


def _read(file: Path) -> Mapping[str, Any]:
    _YAML.check().require()
    yaml = importlib.import_module("yaml")
    try:
        found: Any = yaml.safe_load(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{OPTION}: there is no file {file} (looked in {Path.cwd()}).") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise ConfigError(f"{OPTION}: {file} cannot be read: {first}") from error
    if not isinstance(found, Mapping):
        raise ConfigError(f"{OPTION}: {file} holds no options: one `name: value` on each line.")
    return found


def _words(file: Path, name: str, value: Any) -> Iterator[str]:
    """As it would be typed; null is the default."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        yield f"{option}={str(value).lower()}"
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield f"{option}={','.join(value)}"
    elif isinstance(value, (str, int, float)):
        yield f"{option}={value}"
    elif value is not None:
        raise ConfigError(f"{OPTION}: {file}: {name} is {type(value).__name__}, not one value.")
