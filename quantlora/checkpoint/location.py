"""Where an adapter's files are: PEFT's names and folders, and the hub."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantlora.errors import AdapterFileError
from quantlora.files.hub import HubError, download, with_blobs

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
SIDE = "quantlora.json"

#: PEFT keeps the adapter of this name directly in the folder.
DEFAULT = "default"


def folders_of(folder: str | os.PathLike[str], adapter: str) -> tuple[Path, Path]:
    """``folder`` as a real path, and the folder in it that ``adapter`` is saved in."""
    root = Path(os.path.realpath(folder))
    if root.exists() and not root.is_dir():
        raise AdapterFileError(f"{root} is a file: give the folder to save the adapter in.")
    location = root if adapter == DEFAULT else root / adapter
    if Path(os.path.realpath(location)) != location:
        raise AdapterFileError(
            f"{location} is a link that leads elsewhere: nothing is written there."
        )
    return root, location


def own_file(folder: Path, name: str) -> Path:
    """The file ``name`` of ``folder``, to be read: a regular file that is in there.

    The hub's cache has links in its folders to files beside them, and these are followed.

    Raises:
        FileNotFoundError: there is none.
        AdapterFileError: it is a pipe or device, which may never end, or a link that leads out.
    """
    file = folder / name
    real = Path(os.path.realpath(file))
    if not stat.S_ISREG(real.stat().st_mode):
        raise AdapterFileError(f"{file} is no regular file, and is not opened.")
    allowed = with_blobs(Path(os.path.realpath(folder)))
    if not any(real.is_relative_to(home) for home in allowed):
        raise AdapterFileError(
            f"{file} is a link to {real}, outside the folder, and is not followed: copy the file "
            f"itself."
        )
    return file


@dataclass(frozen=True)
class AdapterLocation:
    """Where an adapter is read from, as users say it: see `load_adapter`."""

    folder: str | os.PathLike[str]
    adapter: str = DEFAULT
    revision: str | None = None
    token: str | bool | None = None
    key_mapping: Mapping[str, str] | None = None

    def find(self) -> Path:
        """The folder, fetched from the hub where it is not on disk."""
        return find_folder(self.folder, self.adapter, self.revision, self.token)


def find_folder(
    folder: str | os.PathLike[str],
    adapter: str,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder to read adapter ``adapter`` from, fetched from the hub where it is not on disk.

    The sub-folder of its name where there is one, else ``folder`` itself, under whatever name
    the adapter was saved.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise AdapterFileError(
            f"an adapter is loaded from the path of its folder or its id on the hub, a string, "
            f"not from {type(folder).__name__}."
        )
    root = Path(folder)
    if not os.path.isdir(root):  # Path.is_dir raises for a name that no file system takes
        root = _from_hub(folder, adapter, revision, token)
    below = root / adapter
    return below if adapter != DEFAULT and (below / CONFIG).is_file() else root


def _from_hub(
    folder: str | os.PathLike[str], adapter: str, revision: str | None, token: str | bool | None
) -> Path:
    name = os.fspath(folder)
    if os.path.exists(name):
        raise AdapterFileError(f"{name} is a file: give the folder that holds the adapter.")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise AdapterFileError(f"{name}: there is no such folder.")
    wanted = [CONFIG, WEIGHTS, SIDE]
    try:
        return download(name, [*wanted, *(f"{adapter}/{file}" for file in wanted)], revision, token)
    except HubError as error:
        raise AdapterFileError(
            f"{name}: there is no such folder, and it cannot be fetched from the Hugging Face hub: "
            f"{error}"
        ) from error
