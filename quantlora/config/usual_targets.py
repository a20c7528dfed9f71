"""The layers that PEFT adapts where a config of its names none, by the type of the model.

From ``TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`` in ``peft/utils/constants.py``
(PEFT 0.21, Apache-2.0); a test compares.
"""

from __future__ import annotations

from quantlora.errors import ConfigError

_QUERY_VALUE = ("q_proj", "v_proj")
_BY_NAMES: dict[tuple[str, ...], str] = {
    _QUERY_VALUE: (
        "bart opt gptj gpt_neo llama llama4 mistral mixtral stablelm gemma gemma2 gemma3_text "
        "qwen2 qwen3"
    ),
    ("q", "v"): "t5 mt5",
    ("query", "value"): "bert roberta xlm-roberta electra layoutlm",
    ("query_key_value",): "bloom gpt_neox chatglm RefinedWebModel RefinedWeb falcon",
    ("c_attn",): "gpt2 gpt_bigcode",
    ("q", "v", *_QUERY_VALUE): "blip-2",
    ("query_proj", "value_proj"): "deberta-v2",
    ("in_proj",): "deberta",
    ("Wqkv",): "mpt",
    ("c_proj", "c_attn"): "btlm",
    ("qkv_proj",): "codegen",
    (*_QUERY_VALUE, "fc1", "fc2"): "phi",
    ("q_proj", "k_proj", "v_proj", "o_proj"): "nemotron_h",
    ("key", "value", "receptance", "output"): "rwkv",
    ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"): "rwkv7",
}
#: Names, or an expression for the whole path.
USUAL_TARGETS: dict[str, list[str] | str] = {
    model_type: list(names) for names, types in _BY_NAMES.items() for model_type in types.split()
} | {"gemma4": r".*language_model\..*\.(q_proj|v_proj)"}


def usual_targets(model_type: str | None) -> list[str] | str:
    """What PEFT adapts in a model of that type.

    Raises `ConfigError` where it has no entry for the type.
    """
    found = USUAL_TARGETS.get(model_type or "")
    if found is None:
        raise ConfigError(
            f"target_modules is not set, and PEFT has no usual choice for models of type "
            f'{model_type!r}: name the layers, or use target_modules="all-linear".'
        )
    return found
