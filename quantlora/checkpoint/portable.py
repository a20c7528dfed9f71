"""An adapter as every server computes it: one rank, one scale of 1, nothing but A and B.

Servers take ``lora_alpha / r`` for all layers, some of them whatever ``use_rslora``,
``rank_pattern`` and ``alpha_pattern`` say (SGLang, llama.cpp). So each layer's scale goes into its
B, and smaller ranks are filled up with zeros, which changes no product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.zero_filled import zero_filled
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern
from quantlora.errors import AdapterFileError

#: B's name for A's, of linear layers and of embeddings.
PAIRS = {
    "lora_A.weight": "lora_B.weight",
    "lora_embedding_A": "lora_embedding_B",
}


def portable(
    config: LoraConfig, tensors: Mapping[str, Tensor], adapter: str
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The same update by a config and tensors that leave a server nothing to get wrong.

    Args:
        config, tensors: as they would go to the file; A ``(r, in)``, B ``(out, r)``.

    Returns:
        ``r = lora_alpha``, no patterns; B is multiplied by the scale in float32 and has the dtype
        that it had.

    Raises:
        AdapterFileError: the adapter holds something else than A and B of matrices.
    """
    if reason := more_than_factors(config, tensors):
        raise AdapterFileError(
            f"adapter {adapter!r} cannot be saved as a portable one: {reason}. Servers take it "
            f"merged: quantlora.export_merged."
        )
    ranks = {key: len(tensor) for key, tensor in tensors.items() if is_first(key)}
    r = max(ranks.values(), default=config.r)
    written: dict[str, Tensor] = {}
    for key, own in ranks.items():
        path, name = split_key(key)
        other = key.removesuffix(name) + PAIRS[name]
        scaled = tensors[other].float() * _scale(config, path, own)
        A, B = tensors[key], scaled.to(tensors[other].dtype)
        written[key] = zero_filled(A, (r, A.shape[1]))
        written[other] = zero_filled(B, (len(B), r))
    plain: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    return replace(config, r=r, lora_alpha=r, lora_dropout=0.0, **plain), written


def _scale(config: LoraConfig, path: str, r: int) -> float:
    return config.scaling(r, by_pattern(path, config.alpha_pattern, config.lora_alpha))


def more_than_factors(config: LoraConfig, tensors: Mapping[str, Tensor]) -> str:
    """What the adapter has beside A and B of matrices; empty where it has nothing."""
    given = {
        "DoRA": config.use_dora,
        "QA-LoRA's pooled A": config.use_qalora,
        f"variant {config.variant!r}": config.variant != "lora"
        and not (config.use_dora or config.use_qalora),
        "trained biases": config.bias != "none" or config.lora_bias,
        "modules trained in full": config.modules_to_save,
        "trained tokens": config.trainable_token_indices,
        "adapters on parameters": config.target_parameters,
    }
    if found := [what for what, there in given.items() if there]:
        return f"it has {', '.join(found)}"
    seconds = PAIRS.values()
    other = [k for k in tensors if not is_first(k) and split_key(k)[1] not in seconds]
    if other:
        return f"it holds {other[0]} ({len(other)} such tensors)"
    wide = [key for key, tensor in tensors.items() if tensor.dim() != 2]
    return f"{wide[0]} is no matrix (a convolution's)" if wide else ""


def is_first(key: str) -> bool:
    return split_key(key)[1] in PAIRS
