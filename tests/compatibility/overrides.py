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
    "dots1": {
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 2, 4]},
        "moe_intermediate_size": [48, 16],
    },
    "muse_spark_audio": {"num_hidden_layers": 4},
    "step3p5": {"mlp_layer_types": ["dense", "sparse"], "sliding_window": 64},
    "glm5_next_text": {"index_topk": 16, "mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"expert_ffn_hidden_size": 48, "n_routed_experts": 4, "zero_expert_num": 2},
}
#: For the architecture itself; a dict is for the config within that has this name.
OVERRIDES: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "gemma4_text": {
        "vocab_size_per_layer_input": 96,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "muse_spark": {"projector_hidden_size": 64},
    "layoutlmv3": {"coordinate_size": 11, "shape_size": 10, "input_size": 32},
}
