"""LLM.int8's own forward, which quantizes the input too: an option for inference.

    from quantlora_bnb.llm_int8 import int8_activations

    int8_activations(model)           # every 8-bit layer of the model
    int8_activations(model, False)    # back to the dequantized product

It counts only while gradients are off; training always uses the dequantized weight.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch import Tensor, nn

from quantlora_bnb.library import library

_SWITCH = "int8_activations"
_LOGGER = "bitsandbytes.autograd._functions"


def int8_activations(model: nn.Module, enabled: bool = True) -> None:
    """Let the 8-bit layers of ``model`` quantize their inputs as upstream does, or not."""
    kind = library().nn.Linear8bitLt
    for module in model.modules():
        if isinstance(module, kind):
            setattr(module, _SWITCH, enabled)


def is_on(layer: nn.Module) -> bool:
    return bool(vars(layer).get(_SWITCH, False))  # asked for each token


def copy_switch(source: nn.Module, target: nn.Module) -> None:
    if is_on(source):
        setattr(target, _SWITCH, True)


def product(x: Tensor, codes: Tensor, absmax: Tensor, threshold: float) -> Tensor:
    """``x · Wᵀ`` in LLM.int8's arithmetic (arXiv:2208.07339, section 3), by upstream's kernels.

    Args:
        x: ``(..., in_features)``.
        codes: int8 ``(out_features, in_features)``.
        absmax: float32 ``(out_features,)``, upstream's ``SCB``.
        threshold: columns of x with a larger value stay in floating point; 0: none does.
    """
    ops = torch.ops.bitsandbytes
    flat = x.reshape(-1, x.shape[-1])
    rows, row_absmax, outliers = ops.int8_vectorwise_quant.default(flat.half(), threshold)
    y: Tensor
    if threshold > 0:
        y, _ = ops.int8_mixed_scaled_mm.default(
            flat, rows, codes, row_absmax, absmax, outliers, None
        )
    else:
        y = ops.int8_scaled_mm.default(rows, codes, row_absmax, absmax, None, dtype=x.dtype)
    return y.reshape(*x.shape[:-1], codes.shape[0])


class _Once(logging.Filter):
    """Lets each message through once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.seen
        self.seen.add(message)
        return new


@lru_cache(maxsize=1)
def say_once() -> None:
    """Stop upstream's line per layer and step; layers without an adapter still print it."""
    logging.getLogger(_LOGGER).addFilter(_Once())
