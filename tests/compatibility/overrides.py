"""What a tiny config needs beyond the common names of its fields, by architecture."""

from __future__ import annotations

from typing import Any

#: For the config within others that has this ``model_type``, wherever it stands.
WITHIN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 16, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "bamba": {"mamba_n_heads": 16, "mamba_d_head": 8, "mamba_n_groups": 1},
    "granitemoehybrid": {"mamba_n_heads": 16, "mamba_d_head": 8, "mamba_n_groups": 1},
    "bit": {"num_groups": 4},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "canine": {"num_hash_buckets": 64},
    "lilt": {"hidden_size": 48, "num_attention_heads": 4},
    "dots1": {"intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 4},
}
#: For the architecture itself; a dict is for the config within that has this name.
OVERRIDES: dict[str, dict[str, Any]] = {
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10, "input_size": 32},
}
