"""A folder of data files: all of them are read, or one that cannot be is named."""

from __future__ import annotations

import re
from pathlib import Path

from quantlora.errors import FinetuneError
from quantlora_finetune.data.files import is_rows

#: What a file's name, or its folder's, may say of the split, as `datasets` has it.
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "validation": ("validation", "valid", "val", "dev"),
}
#: Beside the data, not data.
_CARD = "README.md"


def data_files(folder: Path, split: str) -> list[Path]:
    """The files of ``split``, by name; those whose name says nothing of it are to train on.

    Hidden files are left out, and the card beside files of rows.

    Raises:
        FinetuneError: there are none.
    """
    found = _shown(folder)
    if any(map(is_rows, found)):
        found = [path for path in found if path.name != _CARD]
    chosen = [path for path in found if split_of(path.relative_to(folder)) == split]
    if not found:
        raise FinetuneError(f"{folder} is empty: there is nothing in it to train on.")
    if not chosen:
        there = sorted({split_of(path.relative_to(folder)) for path in found})
        raise FinetuneError(
            f"{folder} has no data files of the split {split!r}, only of "
            f"{', '.join(there)}: name another --split, or the file itself."
        )
    return chosen


def unread_files(folder: Path, split: str) -> list[str]:
    """What of the folder `data_files` leaves out, but for hidden files: paths within it."""
    read = data_files(folder, split)
    return [str(path.relative_to(folder)) for path in _shown(folder) if path not in read]


def _shown(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and _shows(path, folder))


def _shows(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


def split_of(path: Path) -> str:
    words = re.split(r"[^a-z]+", str(path.with_suffix("")).lower())
    return next((name for name, forms in _SPLITS.items() if set(forms) & set(words)), "train")


def is_described(folder: Path) -> bool:
    """Whether a card in the folder says how its files are to be read, for `datasets` to do."""
    card = folder / _CARD
    head = card.read_text("utf-8", "replace")[:4000] if card.is_file() else ""
    return head.startswith("---") and re.search(r"^(configs|dataset_info):", head, re.M) is not None


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of `datasets` has written it: Arrow files and their state."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
