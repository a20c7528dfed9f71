"""The float weights a quantized model was made from, read one at a time from their files.

Never a second model in memory: each safetensors file is opened once, and a tensor is read when it
is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from quantlora.errors import ConfigError
from quantlora.files.safetensors_file import TensorFile
from quantlora.suggestions import unknown

#: Gives the float weight ``(out_features, in_features)`` of the layer at a path.
Reference = Callable[[str], Tensor]

#: Of a hub model: its weights, its config and its tokenizer.
_WANTED = ("*.safetensors*", "*.json", "*.model", "*.txt", "*.jinja")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def open_reference(source: Reference | str | os.PathLike[str]) -> Reference:
    """``source`` as a function of the path: a folder or a hub id is opened, a function is taken."""
    if callable(source):
        return source
    return WeightFiles(folder_or_download(source))


def folder_or_download(source: str | os.PathLike[str]) -> Path:
    """The folder itself, or the hub's snapshot of that name with its config and safetensors."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_WANTED)))
    except Exception as error:
        raise ConfigError(
            f"reference {str(source)!r} is neither a folder here nor a model that the hub gives: "
            f"{type(error).__name__}: {error}"
        ) from error


class WeightFiles:
    """The tensors of a checkpoint folder by key, single file or sharded; called with a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[str, TensorFile] = {}
        self.file_of = self._index()

    def __call__(self, path: str) -> Tensor:
        return self.tensor(self.key(path))

    def key(self, path: str) -> str:
        """The key of the weight at ``path``; a prefix may be there on one side only."""
        wanted = f"{path}.weight"
        if wanted in self.file_of:
            return wanted
        found = [k for k in self.file_of if k.endswith("." + wanted) or wanted.endswith("." + k)]
        if len(found) == 1:
            return found[0]
        raise ConfigError(f"{self.folder}: {unknown('weight', wanted, self.file_of)[:2000]}")

    def tensor(self, key: str) -> Tensor:
        """The tensor of that key, as stored."""
        return self.opened(key).tensor(key)

    def opened(self, key: str) -> TensorFile:
        """The file that holds ``key``."""
        return self._open(self.file_of[key])

    def _index(self) -> dict[str, str]:
        if (self.folder / _INDEX).is_file():
            index = json.loads((self.folder / _INDEX).read_text("utf-8"))
            return dict(index["weight_map"])
        if not (self.folder / _SINGLE).is_file():
            raise ConfigError(
                f"{self.folder}: there is neither {_SINGLE} nor {_INDEX}. Save the float model "
                f"there with model.save_pretrained(folder)."
            )
        return dict.fromkeys(self._open(_SINGLE).keys, _SINGLE)

    def _open(self, name: str) -> TensorFile:
        if name not in self._opened:
            self._opened[name] = TensorFile(self.folder / name)
        return self._opened[name]
