"""`write_adapter_file`: a LoRA adapter as llama.cpp loads it beside its base.

llama.cpp multiplies the update of each tensor with ``adapter.lora.alpha`` over the tensor's rank
(``llama_adapter_lora_weight::get_scale``), and reads no other scale. So each scale is in B, and
alpha is the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quantlora import PlainAdapter
from quantlora_gguf.export.adapter_tensors import AdapterTensor, adapter_tensors
from quantlora_gguf.export.base_names import BaseNames
from quantlora_gguf.export.gguf_output import Output, write_gguf


def adapter_outputs(
    adapter: PlainAdapter, base: BaseNames, block_type: str
) -> tuple[int, list[Output]]:
    """The rank that is written as alpha, and the tensors of the file."""
    tensors = sorted(adapter_tensors(adapter, base), key=_in_file_order)
    alpha = max((tensor.B.shape[-1] for tensor in tensors), default=1)
    return alpha, [output for each in tensors for output in _pair(each, alpha, block_type)]


def write_adapter_file(
    path: Path,
    base: BaseNames,
    alpha: int,
    outputs: list[Output],
    shown: Callable[[Iterable[Output]], Iterable[Output]] = iter,
) -> None:
    """Write the file at ``path``."""

    def metadata(writer: Any) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))

    write_gguf(path, base.architecture, metadata, outputs, shown)


def _in_file_order(tensor: AdapterTensor) -> tuple[int, str]:
    """By the number of the block, then by name: the same file each time."""
    parts = tensor.name.split(".")
    return (int(parts[1]) if parts[1].isdecimal() else -1), tensor.name


def _pair(tensor: AdapterTensor, alpha: int, block_type: str) -> Iterator[Output]:
    """A smaller rank (a stack's own) is multiplied by less, which B makes up for."""
    B = tensor.B.float() * (tensor.B.shape[-1] / alpha)
    for side, values in (("lora_a", tensor.A.float()), ("lora_b", B)):
        name = f"{tensor.name}.{side}"
        yield Output(name, tuple(values.shape), block_type, values.clone)
