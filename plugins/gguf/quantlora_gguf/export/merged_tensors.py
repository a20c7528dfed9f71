"""The tensors of a whole float model under llama.cpp's names, in the form that it keeps them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quantlora import BackendError
from quantlora_gguf.block_types import BLOCK_TYPES
from quantlora_gguf.export.base_names import BaseNames
from quantlora_gguf.export.gguf_output import F32, Output
from quantlora_gguf.export.metadata import rope_of

#: Experts in one parameter: gate and up are two tensors in the file.
_STACK = re.compile(r"(?:.*\.)?layers\.(\d+)\..*experts\.(gate_up_proj|down_proj)")
ROPE = "rope_freqs.weight"
_ROUTER, _EMBEDDING, HEAD = "ffn_gate_inp", "token_embd.weight", "output.weight"
#: Blocks with few bits, with which llama.cpp keeps embedding and head in more.
_FEW_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4")


def merged_outputs(model: Any, base: BaseNames, block_type: str) -> list[Output]:
    """Every parameter of ``model``, matrices as ``block_type`` where their rows are whole blocks.

    Raises:
        BackendError: llama.cpp has no tensor for a parameter, or keeps other elements.
    """
    found = []
    state = model.state_dict()
    for name in state:
        if base.is_tied and name == "lm_head.weight":
            continue
        found += list(_tensors(name, state[name], base, block_type))
    return found + list(_rope_factors(model))


def _tensors(name: str, value: Tensor, base: BaseNames, block_type: str) -> Iterator[Output]:
    if (stack := _STACK.fullmatch(name)) and base.config.model_type != "gpt_oss":
        split = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}[stack[2]]
        for i, part in enumerate(split):
            tensor = f"blk.{stack[1]}.ffn_{part}_exps.weight"
            rows = value.shape[1] // len(split)
            read = partial(value.narrow, 1, i * rows, rows)
            yield _output(tensor, read().shape, block_type, read)
        return
    file_name = base.tensor_of(name)
    if file_name is None:
        raise BackendError(
            f"{name}: llama.cpp has no tensor for it in {base.architecture!r} models. Serve the "
            f"merged folder by vLLM or SGLang, or try llama.cpp's convert_hf_to_gguf.py on it."
        )
    change = _change(file_name, value, base)
    shape = change(torch.empty_like(value, device="meta")).shape
    yield _output(file_name, shape, block_type, lambda: change(value.float()))


def _output(tensor: str, shape: torch.Size, block_type: str, read: Callable[[], Tensor]) -> Output:
    return Output(tensor, tuple(shape), _type(tensor, tuple(shape), block_type), read)


def _change(tensor: str, value: Tensor, base: BaseNames) -> Callable[[Tensor], Tensor]:
    """What makes the file's tensor of the model's."""
    if value.dim() == 1:
        rows, shift = base.names.vector_change(tensor, len(value))
        if rows is not None:
            return lambda given: (given if rows is ... else given[rows]) + shift
    if value.dim() == 2:
        for shape in (tuple(value.shape), tuple(value.shape[::-1])):
            order = base.names.row_order(tensor, (shape[0], shape[1]))
            if order is not None and (shape == tuple(value.shape)) != order.turned:
                inverse = ... if order.rows is None else torch.argsort(order.rows)
                return lambda given: (given.t() if order.turned else given)[inverse]
    raise BackendError(
        f"{tensor}: llama.cpp keeps it in another form than Transformers, which is not known "
        f"backwards. Try llama.cpp's convert_hf_to_gguf.py on the merged folder."
    )


def _type(tensor: str, shape: tuple[int, ...], block_type: str) -> str:
    if len(shape) == 1 or _ROUTER in tensor or block_type == F32:
        return F32
    if block_type in _FEW_BITS and tensor in (_EMBEDDING, HEAD):
        block_type = "Q8_0"
    return block_type if shape[-1] % BLOCK_TYPES[block_type].elements == 0 else "F16"


def _rope_factors(model: Any) -> Iterator[Output]:
    """Llama 3.1 divides its frequencies by factors, which llama.cpp reads as a tensor."""
    rotary: Any = getattr(model.base_model, "rotary_emb", None)
    if getattr(rotary, "rope_type", None) != "llama3":
        return
    count = len(rotary.inv_freq)
    steps = torch.arange(count, dtype=torch.float64) / count
    plain = rope_of(model.config)["rope_theta"] ** -steps
    factors = (plain / rotary.inv_freq.double().cpu()).float()
    yield Output(ROPE, (count,), F32, lambda: factors)
