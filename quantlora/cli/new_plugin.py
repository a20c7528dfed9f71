"""``quantlora new-plugin``: a project for one's own plugin, whose tests pass as it is written."""

from __future__ import annotations

import keyword
import os
import re
from enum import Enum
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from quantlora.errors import ConfigError
from quantlora.files.staging import new_folder

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
#: Names that mean something else where users type a plugin's.
_RESERVED = ("auto", "saved", "builtin", "test", "tests")
_TEMPLATES, _SUFFIX = Path(__file__).with_name("templates"), ".txt"


class Kind(Enum):
    """What the plugin is going to offer."""

    format = "format"
    variant = "variant"
    initializer = "initializer"


_DESCRIPTIONS = {
    Kind.format: "LoRA on a weight format of its own: 8 bits per weight, one scale for each row.",
    Kind.variant: "A variant of LoRA: A is not trained, B and a gain for each output are.",
    Kind.initializer: "First values for LoRA: the rows of A are orthogonal, B is zero.",
}
_USES = {
    Kind.format: '`quantlora.wrap(model, backend="{}")` packs float layers in it.',
    Kind.variant: '`quantlora.wrap(model, use_variant="{}")` puts it on.',
    Kind.initializer: '`quantlora.wrap(model, init_lora_weights="{}")` starts with it.',
}


def new_plugin(
    name: Annotated[
        str,
        typer.Argument(help="What users will type, as `my_format`: small letters, digits, `_`."),
    ],
    kind: Annotated[
        Kind, typer.Option(help="What it offers: a weight format, a variant, an initializer.")
    ] = Kind.format,
    folder: Annotated[
        Path, typer.Option(help="The folder that the project's own folder is put in.")
    ] = Path(),
) -> None:
    """Write a complete plugin project: package, entry point, tests, README.

    It works as it is: a small real format (variant, initializer) to be changed into yours. The
    folder `quantlora-NAME` must not exist.
    """
    target = write_project(name, kind, folder)
    typer.echo(
        f"{target} is written. Next:\n"
        f"  cd {target}\n"
        f'  pip install -e ".[test]"\n'
        f"  python -m pytest\n"
        f"docs: write-a-backend.md, plugins.md, testing-a-plugin.md"
    )


def write_project(name: str, kind: Kind, folder: Path) -> Path:
    """The project's folder, written whole or not at all.

    Raises:
        ConfigError: the name is none, the folder exists, or it cannot be written.
    """
    _check_name(name)
    names = _names(name, kind)
    target = Path(os.path.abspath(folder)) / names["distribution"]
    if target.exists():
        raise ConfigError(f"{target} exists, and is left as it is: choose another name or folder.")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is no folder: make it first, or choose another one.")
    try:
        with new_folder(target) as staging:
            for part in ("common", kind.value):
                _copy(_TEMPLATES / part, staging, names)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 50:
        raise ConfigError(
            f"{name!r} is no name for a plugin: up to 50 small letters, digits and single "
            f"underscores between them, a letter first, as in my_format."
        )
    if name in _RESERVED or keyword.iskeyword(name):
        raise ConfigError(f"the name {name!r} means something else already: choose another one.")


def _names(name: str, kind: Kind) -> dict[str, str]:
    return {
        "name": name,
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "package": f"quantlora_{name}",
        "distribution": f"quantlora-{name.replace('_', '-')}",
        "description": _DESCRIPTIONS[kind],
        "use": _USES[kind].format(name),
    }


def _copy(source: Path, target: Path, names: dict[str, str]) -> None:
    for item in source.iterdir():
        if item.is_dir():
            folder = target / (names["package"] if item.name == "package" else item.name)
            folder.mkdir(exist_ok=True)
            _copy(item, folder, names)
        else:
            text = Template(item.read_text("utf-8")).substitute(names)
            file = item.name.removesuffix(_SUFFIX).replace("test_plugin", f"test_{names['name']}")
            (target / file).write_text(text, "utf-8")
