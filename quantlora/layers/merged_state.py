"""State dicts say which adapters are merged into a module's tensors.

Once in torch's metadata, which a plain mapping and a file lack, and once as a tensor of its own,
which is there only where something is merged.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MERGED = "merged_adapters"


def note_merged(state_dict: MutableMapping[str, Any], prefix: str, names: Sequence[str]) -> None:
    """Write that the adapters ``names`` are merged into the tensors under ``prefix``."""
    if metadata := getattr(state_dict, "_metadata", None):
        metadata.setdefault(prefix[:-1], {})[_MERGED] = tuple(names)
    if names:
        state_dict[prefix + _MERGED] = torch.tensor(
            list("\n".join(names).encode()), dtype=torch.uint8
        )


def noted_merged(
    state_dict: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """What `note_merged` has written; None where nobody has written anything."""
    noted = state_dict.get(prefix + _MERGED)
    if isinstance(noted, Tensor):
        return tuple(bytes(noted.to(torch.uint8).tolist()).decode(errors="replace").split("\n"))
    found = metadata.get(_MERGED)
    return None if found is None else tuple(found)


def expect_note(prefix: str, unexpected: list[str]) -> None:
    """Take the note off torch's list of keys that nothing is loaded from."""
    if prefix + _MERGED in unexpected:
        unexpected.remove(prefix + _MERGED)
