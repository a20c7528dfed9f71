"""The factors of an adapter under llama.cpp's names, their rows in its order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from quantlora import AdapterFileError, Factors, PlainAdapter
from quantlora_gguf.export.base_names import BaseNames

#: A stack of experts as most architectures have it: the block's number, and the parameter.
_STACK = re.compile(r".*?layers\.(\d+)\..*experts\.(gate_up_proj|gate_proj|up_proj|down_proj)")
_STACK_TENSORS = {
    "gate_proj": ("ffn_gate_exps",),
    "up_proj": ("ffn_up_exps",),
    "down_proj": ("ffn_down_exps",),
    "gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
}
_MERGE = "Leave it out of the adapter's targets, or export the merged model: --merged."


@dataclass(frozen=True)
class AdapterTensor:
    """One pair of the file: ``A`` and ``B`` as llama.cpp reads them for tensor ``name``."""

    name: str
    A: Tensor
    B: Tensor


def adapter_tensors(adapter: PlainAdapter, base: BaseNames) -> Iterator[AdapterTensor]:
    """Every layer and every stack.

    Raises:
        AdapterFileError: llama.cpp has no tensor for a layer, keeps its elements in another way, or
            its shape is not the base's.
    """
    for path, factors in adapter.layers.items():
        yield (
            _embedding(path, factors, base) if factors.is_embedding else _layer(path, factors, base)
        )
    for path, factors in adapter.stacks.items():
        yield from _stack(path, factors, base)


def _layer(path: str, factors: Factors, base: BaseNames) -> AdapterTensor:
    name = _name(path, base)
    if name == "output.weight" and base.is_tied:
        raise AdapterFileError(
            f"{path}: the base's head is its embedding, which llama.cpp has no tensor for. {_MERGE}"
        )
    _check_shape(path, (len(factors.B), factors.A.shape[1]), base, name)
    B = base.in_file_order(name, factors.B, factors.A.shape[1])
    if B is None:
        raise AdapterFileError(
            f"{path}: llama.cpp keeps {name} in a form that is no reordering of rows. {_MERGE}"
        )
    return AdapterTensor(name, factors.A, B)


def _embedding(path: str, factors: Factors, base: BaseNames) -> AdapterTensor:
    """llama.cpp looks rows of A up, so it has A by token (``build_inp_embd``)."""
    if base.is_tied:
        raise AdapterFileError(
            f"{path}: the base's head is this embedding too, and llama.cpp would add the update to "
            f"both. {_MERGE}"
        )
    name = _name(path, base)
    _check_shape(path, (factors.A.shape[1], len(factors.B)), base, name)
    return AdapterTensor(name, factors.A.t(), factors.B)


def _stack(path: str, factors: Factors, base: BaseNames) -> Iterator[AdapterTensor]:
    found = _STACK.fullmatch(path)
    plain = base.config.model_type != "gpt_oss"  # interleaves the rows of gate and up
    if found is None or not plain:
        raise AdapterFileError(f"{path}: llama.cpp has no such stack of experts. {_MERGE}")
    names = _STACK_TENSORS[found[2]]
    experts, out, _ = factors.B.shape
    _check_shape(path, (experts, out, factors.A.shape[2]), base, path)
    for name, B in zip(names, factors.B.chunk(len(names), dim=1), strict=True):
        yield AdapterTensor(f"blk.{found[1]}.{name}.weight", factors.A, B)


def _name(path: str, base: BaseNames) -> str:
    name = base.tensor_of(f"{path}.weight")
    if name is None:
        raise AdapterFileError(
            f"{path}: llama.cpp has no tensor for it in {base.architecture!r} models. {_MERGE}"
        )
    return name


def _check_shape(path: str, shape: tuple[int, ...], base: BaseNames, name: str) -> None:
    parameter = path if len(shape) > 2 else f"{path}.weight"
    try:
        wanted = base.shape_of(parameter)
    except KeyError:
        raise AdapterFileError(f"{path}: the base {base.source} has no such parameter.") from None
    if sorted(wanted) != sorted(shape):  # GPT-2's matrices are turned round
        raise AdapterFileError(
            f"{path} is for {shape}, and {name} of the base {base.source} is {wanted}: name the "
            f"base that the adapter was trained on, by --model."
        )
