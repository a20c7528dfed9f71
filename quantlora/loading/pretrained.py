"""A model's folder or hub id: found, and read through Transformers, with errors that help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from quantlora.errors import ConfigError, QuantloraError

T = TypeVar("T")

#: What ``from_pretrained`` raises for a name, a file or a model that will not do.
_REFUSALS = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def resolve_model(model: str) -> str:
    """The absolute folder that ``model`` names, or the hub id that it is.

    Raises:
        ConfigError: it is a file, a folder without a model, or a path to nothing.
    """
    path = Path(model).expanduser()
    if path.is_file():
        raise ConfigError(f"{path} is a file: give the model's folder.")
    if path.is_dir() and not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise ConfigError(
                f"{path} holds an adapter, not a model: load the model it is for, then "
                f'quantlora.load_adapter(model, {str(path)!r}, backend="saved"); or talk with it: '
                f"`quantlora chat {path}`."
            )
        raise ConfigError(f"{path}: there is no config.json; is it a model's folder?")
    if not path.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise ConfigError(f"there is no folder {path} (looked in {Path.cwd()}).")
    return str(path.resolve()) if path.is_dir() else model


def pretrained(model_id_or_path: str, load: Callable[[], T]) -> T:
    """What ``load`` gives, which reads the model at ``model_id_or_path`` (see `resolve_model`).

    Raises:
        ConfigError: Transformers or the hub refuse; their reason is in it, in one sentence.
    """
    try:
        return load()
    except QuantloraError:
        raise
    except _REFUSALS as error:
        if Path(model_id_or_path).is_dir():
            raise ConfigError(
                f"{model_id_or_path} cannot be loaded: {_first_line(error)}"
            ) from error
        raise ConfigError(
            f"{model_id_or_path}: there is no such folder here, and it cannot be fetched from the "
            f"Hugging Face hub: {_first_line(error)} Check the name and the network, log in with "
            f"`hf auth login` if the model is gated, or give a folder."
        ) from error


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line.rstrip('.')}."
