"""A GGUF file, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantlora_gguf.block_types import BLOCK_TYPES, BlockType

F32 = "F32"
#: Puts the metadata into the writer of the package ``gguf``.
Metadata = Callable[[Any], None]


@dataclass(frozen=True)
class Output:
    """A tensor to be written: ``read`` gives its values, float ``shape``, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    block_type: str
    read: Callable[[], Tensor]


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Metadata,
    outputs: Sequence[Output],
    shown: Callable[[Iterable[Output]], Iterable[Output]] = iter,
) -> None:
    """Write the file; of the tensors one at a time is in memory.

    Args:
        shown: passes the tensors on one by one, and may show how far it is.
    """
    import gguf

    with closing(gguf.GGUFWriter(path, architecture)) as writer:
        metadata(writer)
        for output in outputs:
            writer.add_tensor_info(output.name, *_info(output))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for output in shown(outputs):
            writer.write_tensor_data(_bytes(output))


def nbytes(output: Output) -> int:
    """Of the tensor in the file."""
    *rows, width = output.shape
    kind = BLOCK_TYPES.get(output.block_type)
    row = 4 * width if kind is None else kind.row_bytes(width)
    return int(np.prod(rows, dtype=np.int64)) * row


def _info(output: Output) -> tuple[Any, ...]:
    """The arguments of ``add_tensor_info``, which takes packed shapes in bytes."""
    import gguf

    kind = BLOCK_TYPES.get(output.block_type)
    if kind is None:
        return output.shape, np.dtype(np.float32), nbytes(output)
    if kind.name == "F16":
        return output.shape, np.dtype(np.float16), nbytes(output)
    shape = (*output.shape[:-1], kind.row_bytes(output.shape[-1]))
    number = gguf.GGMLQuantizationType[kind.name]
    return shape, np.dtype(np.uint8), nbytes(output), number


def _bytes(output: Output) -> np.ndarray[Any, Any]:
    values, kind = output.read().detach().cpu().contiguous(), BLOCK_TYPES.get(output.block_type)
    assert tuple(values.shape) == output.shape, output.name
    if kind is None:
        return values.float().numpy()
    return _packed(values, kind)


def _packed(values: Tensor, kind: BlockType) -> np.ndarray[Any, Any]:
    from quantlora_gguf.packing import pack

    if kind.name == "F16":
        return values.to(torch.float16).numpy()
    packed: np.ndarray[Any, Any] = pack(values, kind).numpy()
    return packed
