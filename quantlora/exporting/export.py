"""`export_merged`: the merged model on disk, for whoever loads plain models.

Layer by layer: the model in memory stays as it is, and only one shard of the merged one is there
beside it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantlora.adapters.adapted_model import AdaptedModel
from quantlora.adapters.biases import biases_of
from quantlora.errors import MergeError
from quantlora.exporting.export_check import Check, check_export
from quantlora.exporting.export_config import check_mode, write_config
from quantlora.exporting.export_tensors import MergedTensors
from quantlora.exporting.hub_names import hub_names
from quantlora.files.shards import ShardWriter
from quantlora.files.staging import new_folder
from quantlora.merging.merge import check_enabled, chosen_adapters, outer_dtype
from quantlora.transformers_models import is_transformers_model

#: What systems answer to a rename onto a folder that has files.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class ExportReport:
    """Where the export is, its bytes of tensors, and what loading it again showed."""

    folder: Path
    size: int
    check: Check | None


@torch.no_grad()
def export_merged(
    model: nn.Module,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    adapters: str | Sequence[str] | None = None,
    mode: str = "dequantize",
    tokenizer: Any = None,
    max_shard_size: int = 2 * 10**9,
    check: bool = True,
    sample: Mapping[str, Tensor] | None = None,
    progress: bool | None = None,
) -> ExportReport:
    """Write ``model`` with ``adapters`` folded in to ``folder``; the model itself stays as it is.

    The folder appears when everything is written and checked; before, or after a kill, there is
    only ``.<folder>.partial-...`` beside it. Of several exports to one folder the first that is
    through has it; the others fail.

    Args:
        folder: must not exist, or be empty.
        dtype: of the float weights; default: that of the model around its LoRA layers.
        adapters: default: the active ones.
        mode: ``"dequantize"`` writes float weights and takes ``quantization_config`` out of
            config.json; ``"requantize"`` packs in each layer's own format and keeps it;
            ``"exact"`` keeps bits and values (QA-LoRA), in the format that can hold them.
        tokenizer: anything with ``save_pretrained``, saved beside the model.
        max_shard_size: bytes of a file, and of memory needed.
        check: load the export again (so it must fit into memory beside the model) and compare
            weights and logits. Plain modules, which have no config, are not loaded again.
        sample: inputs for that, by name; default: random tokens.
        progress: show a bar; default: on a terminal.

    Raises:
        MergeError: the folder is not empty, the mode cannot work, or the export does not hold what
            it should. Nothing is left behind.
        AdapterError: an adapter is unknown.
    """
    adapted = AdaptedModel.of(model)
    names = chosen_adapters(adapted.state, adapters)
    check_enabled(adapted.state)
    check_mode(adapted, names, mode)
    target = _free(Path(folder))
    fixed = is_transformers_model(model)
    floating = dtype or outer_dtype(adapted) or torch.float32
    source = MergedTensors(adapted, names, mode, floating, fixed)
    with biases_of(adapted.state, names), _staged(target) as staging:
        writer = ShardWriter(staging, max_shard_size)
        own: set[str] = set()
        tensors = _noted(source, own)
        if fixed:
            tensors = hub_names(model, tensors, packed=mode != "dequantize")
        writer.write(_shown(tensors, progress))
        found = None
        if fixed:
            write_config(staging, source, own)
            found = check_export(staging, source, sample) if check else None
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return ExportReport(target, writer.total, found)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder to write in that becomes ``target`` when the block is through."""
    try:
        with new_folder(target) as staging:
            yield staging
    except OSError as error:
        if error.errno in _TAKEN:
            raise MergeError(
                f"{target} has been filled by another export meanwhile, and is left as that made "
                f"it: choose another folder."
            ) from error
        raise MergeError(
            f"{target}: the export could not be written: {error.strerror or error}. Make room, or "
            f"choose another folder; nothing of it is left behind."
        ) from error


def _noted(tensors: Iterable[tuple[str, Tensor]], names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors; their names in the model are added to ``names``."""
    for name, tensor in tensors:
        names.add(name)
        yield name, tensor


def _free(folder: Path) -> Path:
    target = Path(os.path.abspath(folder))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MergeError(f"{target} exists and is not an empty folder: choose another one.")
    above = next(path for path in target.parents if path.exists())
    if not above.is_dir():
        raise MergeError(f"{target}: {above} is a file, not a folder: choose another one.")
    return target


def _shown(
    tensors: Iterable[tuple[str, Tensor]], progress: bool | None
) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, counted on the terminal."""
    from rich.console import Console
    from rich.progress import track

    shown = sys.stderr.isatty() if progress is None else progress
    yield from track(
        tensors, "merging and writing", console=Console(stderr=True), disable=not shown
    )
