"""The fused experts of one layer with the same adapter, by whom they are computed.

Called with hidden states, the experts of each token and their weights: the router is no part of it,
so that rounding sends no token to another expert in one arm than in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import quantlora
from quantlora.experts.packed import PackedExperts
from quantlora.experts.stacks_format import whole_weights
from quantlora.layers.experts import LoraExperts
from tests.benchmarks.arms import FORMATS, Size
from tests.benchmarks.machine import machine

#: The parameters that get an adapter, in the order of `factors`.
NAMES = ("gate_up_proj", "down_proj")
FORMS = ("float", "normalfloat", "bitsandbytes_4bit")
#: Experts of the layer, and how many a token goes to.
EXPERTS, TOP_K = 16, 2
SEED = 4

#: Hidden states, the experts of each token and their weights.
Inputs = tuple[Tensor, Tensor, Tensor]


class Layer(nn.Module):
    """A model of nothing but experts."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.experts(*inputs)
        return out


def inner_size(size: Size) -> int:
    """Of an expert: 1408 (Qwen1.5-MoE's) beside hidden states of 2048."""
    return size.hidden * 11 // 16


def working_type(device: str) -> torch.dtype:
    """bfloat16; float32 on a processor without its products, where it takes ten times as long."""
    fast = device != "cpu" or {*machine(device)["instructions"]} & {"avx512_bf16", "amx_bf16"}  # type: ignore[misc]
    return torch.bfloat16 if fast else torch.float32


def base(size: Size, form: str, device: str, experts: int = EXPERTS) -> Layer:
    """Frozen experts of random weights in ``form``, by Transformers' plain loop over experts."""
    config = MixtralConfig(
        hidden_size=size.hidden, intermediate_size=inner_size(size), num_local_experts=experts
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    layer = Layer(MixtralExperts(config).to(working_type(device)).to(device))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02).requires_grad_(False)
    if form == "float":
        return layer
    options = {**FORMATS[form]}
    if "compute_dtype" in options:
        options["compute_dtype"] = working_type(device)
    quantlora.quantize(layer, backend=form, quantize_options=options)
    return layer


def ours(layer: nn.Module, size: Size) -> nn.Module:
    """``layer`` with quantlora's adapter, B not zero."""
    model = quantlora.wrap(layer, **_fields(size))
    torch.manual_seed(1)
    for factor in factors(model):
        nn.init.normal_(factor, std=0.02)
    return model


def peft(layer: nn.Module, mine: Sequence[Tensor], size: Size) -> nn.Module:
    """``layer``, which must be float, with PEFT's adapter and the numbers of ``mine``."""
    from peft import LoraConfig, get_peft_model

    model: nn.Module = get_peft_model(layer, LoraConfig(**_fields(size)))  # type: ignore[arg-type]
    with torch.no_grad():
        for factor, given in zip(factors(model), mine, strict=True):
            factor.copy_(given)
    return model


def arm(name: str, size: Size, form: str, device: str, experts: int = EXPERTS) -> nn.Module:
    """One arm by itself, in ``form``; PEFT's is always float: it adapts no packed experts."""
    layer = base(size, "float" if name == "peft" else form, device, experts)
    if name == "base":
        return layer
    if name == "quantlora":
        return ours(layer, size)
    return peft(layer, factors(ours(copy.deepcopy(layer), size)), size)


def _fields(size: Size) -> dict[str, Any]:
    parameters = [f"experts.{name}" for name in NAMES]
    fields = {"r": size.r, "lora_alpha": 2 * size.r, "target_modules": []}
    return {**fields, "target_parameters": parameters}


def factors(model: nn.Module) -> list[nn.Parameter]:
    """A and B beside the first matrix, then beside the second, as files have them; or none."""
    found: dict[str, list[Any]] = {}
    for module in model.modules():
        if isinstance(module, LoraExperts):
            sides = (module.lora_A["default"], module.lora_B["default"])
            found |= {name: [side[name].weight for side in sides] for name in NAMES}
        elif hasattr(module, "parameter_name"):  # PEFT's wrapper of one parameter
            sides = (module.lora_A["default"], module.lora_B["default"])
            found[module.parameter_name] = [side.weight for side in sides]
    return [factor for name in NAMES for factor in found.get(name, [])]


def inputs(size: Size, device: str, tokens: int, experts: int = EXPERTS) -> Inputs:
    """``tokens`` hidden states, which go to the first ``experts`` in turn, as many to each."""
    torch.manual_seed(SEED)
    dtype = working_type(device)
    hidden = torch.randn(tokens, size.hidden, device=device, dtype=dtype)
    index = torch.arange(tokens * TOP_K, device=device).remainder(experts).view(tokens, TOP_K)
    weights = torch.rand(tokens, TOP_K, device=device).softmax(-1).to(dtype)
    return hidden, index, weights


def weights_of(model: nn.Module) -> list[Tensor]:
    """The frozen matrices of all experts in float64, the first ones and the second ones."""
    (module,) = [m for m in model.modules() if isinstance(m, MixtralExperts | PackedExperts)]
    found = whole_weights(module)
    return [found[name].double() for name in NAMES]
