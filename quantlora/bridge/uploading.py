"""`push_to_hub` of a wrapped model: the adapter and its card, not the base."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from quantlora.checkpoint.location import SIDE
from quantlora.checkpoint.model_card import CARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] | None = None,
    **kwargs: Any,
) -> str:
    """Upload the active adapter with its card; a card that was edited there stays.

    Transformers' own method would put an empty card over the adapter's.

    Args:
        repo_id: ``"user/name"``; made where it is not there.
        tags: more tags for the card.
        kwargs: Transformers' options for whole models (``max_shard_size``), without effect.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, name.rpartition("/")[2])  # the card takes its title from it
        _fetch_card(api, name, revision, folder)
        model.save_pretrained(folder)  # type: ignore[operator]
        _add_tags(folder / CARD, tags or ())
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=commit_message or "Upload adapter",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=[".cache/*"],
        )
    return str(commit)


def _fetch_card(api: HfApi, repo_id: str, revision: str | None, folder: Path) -> None:
    """The card that is there, and the note by which `save_adapter` knows whether it was edited."""
    for name in (CARD, SIDE):
        if api.file_exists(repo_id, name, revision=revision):
            api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)


def _add_tags(file: Path, tags: Sequence[str]) -> None:
    from huggingface_hub import ModelCard

    if tags:
        card = ModelCard.load(file)
        card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *tags]))
        card.save(file)
