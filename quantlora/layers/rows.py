"""The samples of a batch that belong to one adapter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantlora.errors import AdapterError


def rows_by_adapter(
    names: Sequence[str], known: Sequence[str], x: Tensor, path: str
) -> list[tuple[str, Tensor]]:
    """For each adapter of ``known`` that occurs in ``names``, the indices of its samples."""
    if len(names) != x.shape[0]:
        raise AdapterError(
            f"{path}: adapter_names has {len(names)} entries, but the batch has {x.shape[0]} "
            f"samples: give one name per sample (after beams and repeats are expanded)."
        )
    return [
        (name, torch.tensor([i for i, one in enumerate(names) if one == name], device=x.device))
        for name in known
        if name in names
    ]


def pick_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """The samples ``rows`` of ``x``; all of them for None."""
    return x if rows is None else x.index_select(0, rows)


def add_rows(y: Tensor, rows: Tensor | None, delta: Tensor) -> Tensor:
    """``y`` with ``delta`` added to its samples ``rows``."""
    delta = delta.to(y.dtype)
    return y + delta if rows is None else y.index_add(0, rows, delta)
