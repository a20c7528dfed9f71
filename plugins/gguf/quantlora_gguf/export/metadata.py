"""The metadata of a whole model: from a GGUF file of its base, or from its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantlora import BackendError
from quantlora_gguf.export.base_names import BaseNames

#: Written anew, or of the file that they were in.
_OWN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization", "split.")
#: What each architecture computes after gate; llama.cpp reads none of it from the file.
_ACTIVATION = {
    "llama": "silu",
    "qwen2": "silu",
    "qwen3": "silu",
    "qwen3moe": "silu",
    "gemma3": "gelu_pytorch_tanh",
}
#: Every so many layers one of Gemma 3 sees all tokens.
_GEMMA_PATTERN = 6
_REMEDY = (
    "Name a GGUF file of the same model with --base, whose metadata are taken, or try llama.cpp's "
    "convert_hf_to_gguf.py on the merged folder"
)


def copy_metadata(writer: Any, source: Path, template: str | None = None) -> None:
    """Everything that the file at ``source`` says of its model, the tokenizer included.

    Args:
        template: a chat template in place of the file's own.
    """
    import gguf

    replaced = _OWN if template is None else (*_OWN, gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    for key, entry in gguf.GGUFReader(source).fields.items():
        if not key.startswith(replaced):
            nested = entry.types[-1] if len(entry.types) > 1 else None
            writer.add_key_value(key, entry.contents(), entry.types[0], nested)
    if template is not None:
        writer.add_chat_template(template)


def add_config(writer: Any, base: BaseNames) -> None:
    """What llama.cpp wants to know of an architecture, from Transformers' config.

    Raises:
        BackendError: it is none of llama, mistral, mixtral, qwen2, qwen3, qwen3moe and gemma3, or
            has a setting that llama.cpp does not read.
    """
    config = base.config
    _check_computed(base.architecture, config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    width = _head_width(config)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    _add_rope(writer, config)
    _add_more(writer, base.architecture, config)


def _head_width(config: Any) -> int:
    width: int | None = getattr(config, "head_dim", None)
    return width or config.hidden_size // config.num_attention_heads


def _add_rope(writer: Any, config: Any) -> None:
    import gguf

    every = rope_of(config)
    rope = every.get("full_attention", every)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if local := every.get("sliding_attention"):
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _add_more(writer: Any, architecture: str, config: Any) -> None:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if architecture == "qwen3moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        if config.final_logit_softcapping:
            writer.add_final_logit_softcapping(config.final_logit_softcapping)


def rope_of(config: Any) -> dict[str, Any]:
    """Transformers 5's ``rope_parameters``, of an older config too."""
    found = getattr(config, "rope_parameters", None)
    if found:
        return dict(found)
    scaling = getattr(config, "rope_scaling", None) or {}
    return {"rope_theta": config.rope_theta, "rope_type": "default", **scaling}


def _check_computed(architecture: str, config: Any) -> None:
    if architecture not in _ACTIVATION:
        raise BackendError(
            f"what llama.cpp wants to know of {architecture!r} models is not known here; it is for "
            f"{', '.join(_ACTIVATION)}. {_REMEDY}."
        )
    if found := [what for what, there in _unread(architecture, config).items() if there]:
        raise BackendError(f"llama.cpp would compute something else: {found[0]}. {_REMEDY}.")


def _unread(architecture: str, config: Any) -> dict[str, bool]:
    """Settings that differ from what llama.cpp's code has for the architecture."""
    every = rope_of(config)
    rope = every.get("full_attention", every).get("rope_type", "default")
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    kinds = getattr(config, "layer_types", None) or []
    sliding = [kind == "sliding_attention" for kind in kinds]
    gemma = [bool((i + 1) % _GEMMA_PATTERN) for i in range(len(kinds))]
    scale = getattr(config, "query_pre_attn_scalar", None)
    return {
        f"its rope is {rope!r}": rope not in ("default", "linear", "llama3"),
        f"its activation is {activation!r}": activation != _ACTIVATION[architecture],
        "its sliding layers are not every six but one": architecture == "gemma3"
        and sliding != gemma,
        f"its query_pre_attn_scalar is {scale}": scale not in (None, _head_width(config)),
        "some of its layers have no experts": bool(getattr(config, "mlp_only_layers", None))
        or getattr(config, "decoder_sparse_step", 1) != 1,
        "norm_topk_prob is off": architecture == "qwen3moe" and not config.norm_topk_prob,
        "it attends to later tokens": bool(getattr(config, "use_bidirectional_attention", False)),
    }
