"""A packed `Linear4bit` as settings and plain tensors, and from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from quantlora import PackedState
from quantlora_bnb.cpu_layout import ordinary_state
from quantlora_bnb.library import library
from quantlora_bnb.settings import Settings4bit, dtype_name

#: Upstream's key of what is no tensor, as bytes; the type of the codes follows.
_PREFIX = "quant_state.bitsandbytes__"
_FACTS = "facts"


def layer_state(layer: Any) -> PackedState:
    """The codes, upstream's state by its own names, and the bias."""
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    state: dict[str, Tensor] = ordinary_state(layer).as_dict(packed=True)
    named = {_FACTS if name.startswith(_PREFIX) else name: t for name, t in state.items()}
    tensors = {"codes": layer.weight.data, **named}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.detach()
    return PackedState({**sizes, **to_json(Settings4bit.of(layer))}, tensors)


def layer_from(state: PackedState, kind: Any) -> nn.Module:
    """Args: kind: ``bitsandbytes.nn.Linear4bit``."""
    tensors, given = dict(state.tensors), dict(state.settings)
    sizes = given.pop("in_features"), given.pop("out_features")
    own = asdict(from_json(given))
    del own["blocksize"]
    bias, codes = tensors.pop("bias", None), tensors.pop("codes")
    layer = kind(*sizes, bias is not None, **own, device="meta")
    tensors[f"{_PREFIX}{own['quant_type']}"] = tensors.pop(_FACTS).cpu()
    layer.weight = library().nn.Params4bit.from_prequantized(
        codes, tensors, device=codes.device, module=layer
    )
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer  # type: ignore[no-any-return]


def to_json(settings: Settings4bit) -> dict[str, Any]:
    return {
        name: dtype_name(value) if isinstance(value, torch.dtype) else value
        for name, value in asdict(settings).items()
    }


def from_json(given: dict[str, Any]) -> Settings4bit:
    dtypes = ("quant_storage", "compute_dtype")
    own = {n: getattr(torch, v) if n in dtypes and v else v for n, v in given.items()}
    return Settings4bit(**own)
