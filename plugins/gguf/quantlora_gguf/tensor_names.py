"""What Transformers knows of a file's tensors: their names in the model, and how they are changed.

llama.cpp writes some tensors in another form: q and k of Llama with their rows in another order,
norms of Gemma one larger, matrices of GPT-2 turned round. Transformers undoes it on float tensors.
Here its own functions are run on numbers that count the elements, and what they do is seen: where
only rows are moved, the packed rows are moved instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlora.errors import BackendError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class RowOrder:
    """How packed rows come to stand in the model: ``weight[rows]``; None: as they are.

    ``turned``: the model has the matrix the other way round (`Conv1D`).
    """

    rows: Tensor | None = None
    turned: bool = False


@dataclass
class TensorNames:
    """Transformers' knowledge of one architecture.

    Args:
        model: without weights, for the names of its parameters.
        architecture: the file's ``general.architecture``.
    """

    model: Any
    architecture: str
    _orders: dict[tuple[str, tuple[int, ...]], RowOrder | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from transformers import modeling_gguf_pytorch_utils as theirs

        get_names: Any = theirs.get_gguf_hf_weights_map  # untyped upstream
        kind: Any = theirs.TENSOR_PROCESSORS.get(self.architecture, theirs.TensorProcessor)
        self._processor = kind(config=self.model.config.to_dict())
        try:
            self.names: dict[str, str] = get_names(self.model, self._processor, self.architecture)
        except NotImplementedError as error:
            raise BackendError(
                f"architecture {self.architecture!r}: the names of its tensors are not known: "
                f"{error}. Load it as floats: AutoModelForCausalLM.from_pretrained(folder, "
                f"gguf_file=...)."
            ) from error

    def name_of(self, tensor: str) -> str | None:
        """The parameter that ``tensor`` is, or is a part of; None where there is none."""
        return self.names.get(tensor) or self.names.get(tensor.removesuffix(".weight"))

    def changed(self, tensor: str, values: Tensor, parts: dict[str, Tensor]) -> None:
        """Put what becomes of a file's tensor into ``parts``, by name in the model.

        Several tensors may be parts of one; they are given the same ``parts``.
        """
        found = self._run(tensor, values.numpy(), parts)
        if found is not None:
            parts[self.names[tensor]] = torch.from_numpy(np.ascontiguousarray(found))

    def row_order(self, tensor: str, shape: tuple[int, int]) -> RowOrder | None:
        """What happens to the rows of a matrix; None where its elements are changed otherwise."""
        key = (re.sub(r"\d+", "#", tensor), shape)
        if key not in self._orders:
            self._orders[key] = self._seen(tensor, shape)
        return self._orders[key]

    def vector_change(self, tensor: str, length: int) -> tuple[Any, float]:
        """What makes a file's vector of the model's: ``vector[rows] + shift``.

        ``rows`` is ``...`` where all stay where they are, None where it is another change.
        """
        given = np.arange(length, dtype=np.float64)
        found = self._run(tensor, given, {})
        if found is None or found.shape != given.shape:
            return None, 0.0
        shift = float(given.sum() - found.sum()) / length
        rows = np.argsort(found + shift)
        if not np.array_equal(np.sort(found + shift), given):
            return None, 0.0
        return (... if np.array_equal(rows, given) else torch.from_numpy(rows)), shift

    def _seen(self, tensor: str, shape: tuple[int, int]) -> RowOrder | None:
        parts: dict[str, Tensor] = {}
        none_yet = np.broadcast_to(np.int8(1), shape)  # of any shape, and takes no memory
        if self._run(tensor, none_yet, parts) is none_yet:
            return RowOrder()
        given = np.arange(prod(shape), dtype=np.int64).reshape(shape)
        parts.clear()
        found = self._run(tensor, given, parts)
        if found is None and len(parts) == 1:
            found = next(iter(parts.values())).numpy()
        return None if found is None else _order_of(found, given)

    def _run(self, tensor: str, values: Array, parts: dict[str, Tensor]) -> Array | None:
        """Their function's result; None where it has put it into ``parts`` itself."""
        result = self._processor.process(
            weights=values,
            name=tensor,
            tensor_key_mapping=self.names,
            parsed_parameters={"tensors": parts},
        )
        return None if result.name is None else result.weights


def _order_of(found: Array, given: Array) -> RowOrder | None:
    for turned in (False, True):
        matrix = found.T if turned else found
        if matrix.shape != given.shape:
            continue
        rows = matrix[:, 0] // given.shape[1]
        if np.array_equal(np.sort(rows), np.arange(len(given))) and (matrix == given[rows]).all():
            same = np.array_equal(rows, np.arange(len(rows)))
            return RowOrder(None if same else torch.from_numpy(rows), turned)
    return None


def is_turned(module: nn.Module) -> bool:
    """Whether a module has its matrix as ``(in_features, out_features)``."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
