"""Small models with fused experts, as Transformers makes them: random weights, float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SIZES: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 2,
}
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def mixtral() -> Any:
    """Experts ``(experts, out, in)``."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return made(MixtralForCausalLM, MixtralConfig(**SIZES))


def qwen3_moe() -> Any:
    """The same layout, with norms in attention."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {**SIZES, "num_experts": 4, "moe_intermediate_size": 24}
    return made(Qwen3MoeForCausalLM, Qwen3MoeConfig(**sizes))


def gpt_oss() -> Any:
    """Experts ``(experts, in, out)``: the module says ``is_transposed``."""
    pytest.importorskip("transformers", "4.55")
    from transformers import GptOssConfig, GptOssForCausalLM

    return made(GptOssForCausalLM, GptOssConfig(**SIZES))


MODELS: dict[str, Callable[[], Any]] = {
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "gpt_oss": gpt_oss,
}


class Experts(nn.Module):
    """Three experts whose outputs are summed: no router, so that the formula is short."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.is_transposed = transposed
        self.w = nn.Parameter(torch.randn(3, 6, 4) if transposed else torch.randn(3, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        w = self.w.transpose(1, 2) if self.is_transposed else self.w
        return torch.einsum("ni,eoi->eno", x, w).sum(0)


def made(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config)
    if all(parameter.dim() < 3 for parameter in model.parameters()):
        pytest.skip("before Transformers 5 these experts are layers of their own")
    for parameter in model.parameters():  # else experts differ too little for a test to see
        parameter.data = 0.2 * torch.randn_like(parameter)
    return model
