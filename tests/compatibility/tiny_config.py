"""A tiny config of any architecture of Transformers: its defaults, with sizes that take no time.

Fields are known by their names, which Transformers keeps alike over its architectures. What an
architecture needs beside them is in `overrides.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

from tests.compatibility.overrides import OVERRIDES, WITHIN

#: Value by an expression that the whole name of a field matches; the first one counts.
SIZES: list[tuple[str, int]] = [
    (r"vocab_size|vocab_size_or_config_json_file", 96),
    (r"(text|vision|audio|decoder|encoder)_(hidden_size|hidden_dim)", 64),
    (r"hidden_size|d_model|n_embd|dim|embed_dim|hidden_dim|embedding_size|emb_dim", 64),
    (r"projection_dim|(encoder|decoder)_embed_dim|(encoder|decoder)_hidden_size", 64),
    (r"out_hidden_size|text_embed_dim|output_hidden_size|decoder_hidden_size", 64),
    (r"input_embedding_size|word_embed_proj_dim|hidden_size_per_layer_input|embedding_dim", 64),
    (r"intermediate_size|ffn_dim|d_ff|n_inner|mlp_dim|d_inner|(encoder|decoder)_ffn_dim", 48),
    (r"(decoder_)?intermediate_dim|ffn_hidden_size|dim_feedforward|feed_forward_size", 48),
    (r".*_intermediate_size|intermediate_size_.*|inner_dim|fc_inner_dim", 48),
    (r"num_(hidden_)?layers|n_layers?|depth|(num_)?(encoder|decoder)_layers", 2),
    (r"num_(encoder|decoder|block|coder|local|global)_(layers|blocks)|num_blocks|layers", 2),
    (r"num_(encoder|decoder)_(hidden_)?layers|(encoder|decoder)_num_hidden_layers", 2),
    (r"num_(attention_)?heads|n_heads?|(encoder|decoder)_attention_heads|attention_heads", 4),
    (r"(encoder|decoder)_num_(attention_)?heads|num_(encoder|decoder)_attention_heads", 4),
    (r"(global_|attention_)?head_dim|d_kv|attention_head_size|qk_nope_head_dim|v_head_dim", 16),
    (r"qk_rope_head_dim|rotary_dim|kv_channels|d_head", 16),
    (r"(q|kv)_lora_rank", 16),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_experts_.*(?<!tok)", 4),
    (r"(num_experts_per_tok(en)?|moe_k|top_k|num_selected_experts|moe_top_?k)", 2),
    (r"n_group|topk_group|num_expert_groups?", 1),
    (r"first_k_dense_replace", 1),
    (r"max_(position_embeddings|source_positions|target_positions|seq_len(gth)?)", 64),
    (r"n_positions|n_ctx|context_length|sliding_window|seq_length", 64),
    (r"image_size|anchor_image_size|pretrain_image_size|img_size|input_size", 32),
    (r"patch_size", 8),
    (r"num_mel_bins", 16),
    (r"conv_dim|feature_projection_input_dim|input_feat_per_channel", 64),
    (r"mamba_(d_state|n_heads|num_heads)|state_size|ssm_state_size", 8),
    (r"mamba_(d_head|head_dim)", 8),
    (r"linear_(key|value)_head_dim", 8),
    (r"linear_num_(key|value)_heads", 2),
    (r"index_(n_heads|topk)", 8),
    (r"index_head_dim", 32),  # rotates as much as a head of the attention
    (r"num_queries|num_query_tokens|query_length|num_latents|num_codevectors_per_group", 4),
    (r"d_latents", 64),
    (r"classifier_proj_size|codevector_dim|proj_codevector_dim", 16),
    (r"num_conv_pos_embeddings", 16),
    (r"num_conv_pos_embedding_groups", 2),
    (r"decoder_n_points|encoder_n_points", 2),
]
#: The same for lists, whose length is kept: one value for each member.
LISTS: list[tuple[str, int]] = [
    (r"depths|layers|num_blocks|depth", 1),
    (r"num_(attention_)?heads|num_heads", 2),
    (r"hidden_sizes|embed_dims?|conv_dim|widths|neck_hidden_sizes|encoder_hidden_channels", 64),
]


def tiny_config(cls: type, model_type: str | None = None) -> Any:
    """An instance of the config class ``cls``, and of the configs within it, at small sizes."""
    return cls(**_small(cls(), model_type or cls.model_type))


def _small(default: Any, model_type: str) -> dict[str, Any]:
    values = {field.name: _read(default, field.name) for field in dataclasses.fields(default)}
    own = {name: _field(name, value) for name, value in values.items()}
    chosen = {name: value for name, value in own.items() if value is not None}
    chosen |= {**_tokens(values), **_groups(values), **_rotation(default, values)}
    chosen |= WITHIN.get(default.model_type, {})
    given = OVERRIDES.get(model_type, {}) if default.model_type == model_type else {}
    return _merged(chosen, given)


def _read(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # differs by layer, and refuses to answer for all
        return None


def _groups(values: dict[str, Any]) -> dict[str, int]:
    """Heads of keys and values: as many as of queries where that is the default, else half."""
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if not isinstance(heads, int) or not isinstance(groups, int):
        return {}
    return {"num_key_value_heads": 4 if heads == groups else 2}


def _rotation(default: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Sections of a rotary embedding over time, height and width, for heads of 16 features."""
    modeling = type(default).__module__.replace("configuration_", "modeling_")
    try:
        source = inspect.getsource(importlib.import_module(modeling))
    except (ImportError, OSError):
        return {}
    given = values.get("rope_parameters")
    if "mrope_section" not in source or not isinstance(given, dict) or "rope_type" not in given:
        return {}
    half = int(8 * given.get("partial_rotary_factor", 1.0))
    quarter = half // 4
    return {"rope_parameters": {**given, "mrope_section": [half - 2 * quarter, quarter, quarter]}}


def _merged(base: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``given`` over it; dicts for a config within are given to that config."""
    merged = dict(base)
    for name, value in given.items():
        inner = base.get(name)
        if isinstance(value, dict) and hasattr(inner, "model_type"):
            value = type(inner)(**{**_small(type(inner)(), inner.model_type), **value})
        merged[name] = value
    return merged


def _field(name: str, value: Any) -> Any:
    """The small value of one field, or None to leave it at its default."""
    if hasattr(value, "model_type"):
        return tiny_config(type(value), value.model_type)
    if isinstance(value, (list, tuple)) and value and all(type(one) is int for one in value):
        small = _by_name(name, LISTS)
        return None if small is None else type(value)(min(small, one) for one in value)
    if name == "use_cache":
        return False  # two layers need not have one of the kind that a cache asks for
    if value is None or type(value) is not int:
        return None
    small = _by_name(name, SIZES)
    return None if small is None else min(small, value) or value


def _by_name(name: str, table: list[tuple[str, int]]) -> int | None:
    return next((value for form, value in table if re.fullmatch(form, name)), None)


def _tokens(values: dict[str, Any]) -> dict[str, int]:
    """Special tokens, whose defaults may lie beyond the vocabulary, get the numbers from 3 on."""
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    found = [
        name
        for name, value in values.items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, (int, list))
    ]
    others = [name for name in found if name not in known]
    return {name: known[name] for name in found if name in known} | {
        name: 3 + index for index, name in enumerate(others)
    }
