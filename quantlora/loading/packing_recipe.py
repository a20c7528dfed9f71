"""What a packed checkpoint depends on: the files it is packed from, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import quantlora
from quantlora.errors import ConfigError
from quantlora.files.hub import HubError, download
from quantlora.formats.model_loader import LoadRequest
from quantlora.loading.pack_plan import Wanted
from quantlora.loading.pretrained import resolve_model

#: Arguments of ``from_pretrained`` that change the tensors; others say where they are.
_ARGUMENTS = ("dtype", "torch_dtype", "variant", "subfolder")
_GENERATION = "generation_config.json"
_SUFFIXES = (".safetensors", ".bin")
_WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def recipe_of(request: LoadRequest, wanted: Wanted) -> dict[str, Any]:
    """The settings, as JSON has them."""
    options = {name: str(value) for name, value in sorted(request.options.items())}
    given = {name: str(request.arguments[name]) for name in _ARGUMENTS if name in request.arguments}
    version = {"quantlora": quantlora.__version__}
    made = {"backend": request.backend, "quantize_options": options}
    return {**made, **vars(wanted), **given, **version}


def source_folder(request: LoadRequest) -> Path:
    """Where the files are; a hub id's are fetched into its cache.

    Raises `ConfigError` where there are none.
    """
    source = resolve_model(request.source)
    if not Path(source).is_dir():
        where = {name: request.arguments.get(name) for name in ("revision", "token")}
        try:
            source = str(download(source, _WANTED, **where))
        except HubError as error:
            raise ConfigError(
                f"packed_folder: {request.source} is neither a folder here nor a model that the "
                f"hub gives: {error}"
            ) from error
    return Path(source, request.arguments.get("subfolder") or "")


def source_files(folder: Path) -> list[str]:
    """The names of the config, the index and the weights."""
    return sorted(file.name for file in folder.iterdir() if _is_of_the_model(file))


def side_files(folder: Path) -> list[Path]:
    """The tokenizer and whatever else is small and beside the weights."""
    kinds = {Path(pattern).suffix for pattern in _WANTED[1:]}
    found = (file for file in folder.iterdir() if file.suffix in kinds and file.is_file())
    return sorted(
        f for f in found if not _is_of_the_model(f) and f.name != "generation_config.json"
    )


def _is_of_the_model(file: Path) -> bool:
    weights = file.suffix in _SUFFIXES
    return weights or file.name == "config.json" or file.name.endswith(".index.json")
