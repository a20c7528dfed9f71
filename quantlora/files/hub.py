"""The Hugging Face hub: fetched into its cache, whose folders link to files beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Arguments of ``from_pretrained`` that say where on the hub, or in its cache, a file is.
_WHERE = ("revision", "token", "cache_dir", "local_files_only")
_CONFIG = "config.json"


class HubError(Exception):
    """The hub did not give what was asked for; the text is its reason, in one line."""


def download(
    name: str,
    patterns: Sequence[str],
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder of a snapshot of the repository ``name``, with the files that match ``patterns``.

    Raises:
        HubError: it is not there, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    wanted = list(patterns)
    try:
        found = snapshot_download(name, revision=revision, token=token, allow_patterns=wanted)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise HubError(f"{type(error).__name__}: {line}") from error
    return Path(found)


def read_config(source: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of the folder or hub id ``source``; empty where it cannot be read.

    A hub id's is fetched into the hub's cache, or found there.

    Args:
        arguments: those of ``from_pretrained``; ``revision``, ``subfolder`` and so on count.
    """
    folder, inner = Path(source).expanduser(), arguments.get("subfolder") or ""
    try:
        if folder.exists():
            found = json.loads((folder / inner / _CONFIG).read_text("utf-8"))
        else:
            found = json.loads(_fetched(source, inner, arguments).read_text("utf-8"))
    except Exception:  # the hub's client has many; whoever loads the model says what is wrong
        return {}
    return found if isinstance(found, dict) else {}


def _fetched(name: str, subfolder: str, arguments: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    given = {key: arguments[key] for key in _WHERE if key in arguments}
    return Path(hf_hub_download(name, _CONFIG, subfolder=subfolder or None, **given))


def with_blobs(folder: Path) -> list[Path]:
    """``folder``, and where the hub's cache keeps the files of a snapshot that it is within:
    ``models--x--y/snapshots/revision`` has links to ``models--x--y/blobs``.
    """
    snapshots = [
        above for above in folder.parents if above.name == "snapshots" and "--" in above.parent.name
    ]
    return [folder, *(above.parent / "blobs" for above in snapshots)]
