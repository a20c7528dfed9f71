"""The float weights a quantized model was made from, read one at a time from their files.

Never a second model in memory: each safetensors file is opened once, and a tensor is read when it
is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath

from torch import Tensor

from quantlora.errors import ConfigError
from quantlora.files.hub import HubError, download, with_blobs
from quantlora.files.safetensors_file import TensorFile
from quantlora.files.shards import INDEX, SINGLE
from quantlora.suggestions import unknown

#: Gives the float weight ``(out_features, in_features)`` of the layer at a path.
Reference = Callable[[str], Tensor]

#: Of a hub model: its weights, its config and its tokenizer.
_WANTED = ("*.safetensors*", "*.json", "*.model", "*.txt", "*.jinja")


def open_reference(source: Reference | str | os.PathLike[str]) -> Reference:
    """``source`` as a function of the path: a folder or a hub id is opened, a function is taken."""
    if callable(source):
        return source
    return WeightFiles(folder_or_download(source))


def folder_or_download(source: str | os.PathLike[str]) -> Path:
    """The folder itself, or the hub's snapshot of that name with its config and safetensors."""
    if Path(source).is_dir():
        return Path(source)
    try:
        return download(str(source), _WANTED)
    except HubError as error:
        raise ConfigError(
            f"reference {str(source)!r} is neither a folder here nor a model that the hub gives: "
            f"{error}"
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
        file = self._open(self.file_of[key])
        if key not in file:
            raise ConfigError(
                f"{file.file} lacks {key}, which {INDEX} says is in it. Copy or save the model "
                f"again."
            )
        return file

    def _index(self) -> dict[str, str]:
        _check_links(self.folder, self.folder, (INDEX, SINGLE))
        if (self.folder / INDEX).is_file():
            return read_index(self.folder / INDEX)
        if not (self.folder / SINGLE).is_file():
            raise ConfigError(
                f"{self.folder}: there is neither {SINGLE} nor {INDEX}. Save the float model "
                f"there with model.save_pretrained(folder)."
            )
        return dict.fromkeys(self._open(SINGLE).keys, SINGLE)

    def _open(self, name: str) -> TensorFile:
        if name not in self._opened:
            self._opened[name] = TensorFile(self.folder / name)
        return self._opened[name]


def read_index(file: Path) -> dict[str, str]:
    """Which file holds a tensor, by its key; all of them within the index's own folder.

    Raises:
        ConfigError: the index is damaged, or names a file outside, by its path or by a link.
    """
    try:
        index = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Copy or save it again.") from error
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise ConfigError(f"{file} has no weight_map from keys to files. Copy or save it again.")
    if outside := [name for name in file_of.values() if not _is_within(name)]:
        raise ConfigError(
            f"{file} names {outside[0]!r}, which is not in its folder, and is not opened. Ask "
            f"whoever made it for a model whose files are side by side."
        )
    _check_links(file, file.parent, dict.fromkeys(file_of.values()))
    return file_of


def _is_within(name: str) -> bool:
    path = PureWindowsPath(name)  # which takes both kinds of slashes, and drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def _check_links(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Raise `ConfigError` where one of ``names`` in ``folder`` is a link out of it."""
    if links := [name for name in names if _leads_out(folder, name)]:
        raise ConfigError(
            f"{source} has {links[0]!r}, a link to {(folder / links[0]).resolve()}, which is "
            f"not in its folder, and is not opened. If you trust that file, copy it to where the "
            f"link is."
        )


def _leads_out(folder: Path, name: str) -> bool:
    """Whether links lead from ``name`` to a file that is none of the model's."""
    try:
        file = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):  # missing, or a circle of links: said when it is opened
        return False
    home = folder.resolve()
    return not any(file.is_relative_to(allowed) for allowed in with_blobs(home))
