"""One module of fused experts of each family, in float64, and rows for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.experts.layout import ExpertsLayout
from quantlora.layers.experts import experts_layout
from tests.compatibility.families import classes
from tests.compatibility.tiny_config import tiny_config

FAMILIES = (
    "mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "olmoe", "gpt_oss", "llama4_text",
    "nemotron_h", "aria_text",
)  # fmt: skip
#: Of `rows_for`.
TOKENS, CHOSEN = 8, 2


def expert_module(family: str) -> Any:
    """The first of the family's tiny model, with values that differ from expert to expert."""
    pytest.importorskip("transformers.conversion_mapping")  # Transformers 5
    config_class, model_class = classes(family)
    torch.manual_seed(0)
    kind: Any = model_class
    model = kind._from_config(tiny_config(config_class), experts_implementation="eager")
    found = next(one for one in model.modules() if ExpertsLayout.of(one) is not None)
    for parameter in found.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, dtype=torch.float64)
    return found


def rows_for(module: nn.Module) -> tuple[Tensor, ...]:
    """Hidden states, and where the module is called with them, top-k index and weights."""
    layout = ExpertsLayout.of(module)
    assert layout is not None
    own: Any = module
    experts, *sizes = getattr(own, layout.down).shape
    width = sizes[1] if layout.transposed else sizes[0]
    torch.manual_seed(1)
    x = torch.randn(TOKENS, width, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(experts)[:CHOSEN] for _ in range(TOKENS)])
    if layout.routed:
        weights = torch.rand(TOKENS, CHOSEN, dtype=torch.float64)
        return x.requires_grad_(), chosen, weights.requires_grad_()
    scores = torch.zeros(experts, TOKENS, 1, dtype=torch.float64)
    scores[chosen.t(), torch.arange(TOKENS)] = torch.rand(CHOSEN, TOKENS, 1, dtype=torch.float64)
    return ((x * scores).reshape(-1, width).requires_grad_(),)


def adapted(module: nn.Module, **fields: Any) -> Any:
    """The `LoraExperts` around it, with random adapters on both matrices."""
    layout = experts_layout(module)
    assert layout is not None
    model = nn.ModuleDict({"experts": module})
    names = [f"experts.{name}" for name in layout.names]
    given = {"r": 2, "init_lora_weights": False, "target_modules": [], "target_parameters": names}
    torch.manual_seed(2)
    quantlora.wrap(model, **{**given, **fields})
    return model


def by_whole_weights(layer: Any, names: tuple[str, ...], *rows: Tensor) -> Tensor:
    """The reference: the module's own forward with W + Σ ΔW of all experts, by torch's autograd."""
    module, tensors = layer.base_layer, dict(layer.base_layer.named_parameters())
    for name in names:
        for key, delta in layer.deltas(name).items():
            tensors[key] = tensors[key] + delta
    return torch.func.functional_call(module, tensors, rows)
