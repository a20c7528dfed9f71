"""Whether vLLM will serve an adapter, and why not.

From the source of vLLM (``vllm/lora/peft_helper.py``, ``lora_model.py``, ``lora_weights.py``): it
reads ``r``, ``lora_alpha``, ``use_rslora`` and computes one scale from them for all layers. PEFT's
files with adapters on the parameters of experts are taken since 0.11.2, for models whose experts
vLLM has in one tensor, or started with ``--enable-mixed-moe-lora-format`` and the adapter's
``is_3d_lora_weight``: the outer of two nested adapters is that of ``down_proj``, the inner one that
of ``gate_up_proj``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.location import find_folder
from quantlora.checkpoint.read import read_adapter
from quantlora.config.lora_config import LoraConfig

_TENSORS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
#: The parameters of experts that vLLM knows, and what stands before the inner one's tensors.
_STACKS = ("gate_up_proj", "down_proj")
_INNER = "base_layer."


def check_vllm(
    folder: str | os.PathLike[str], adapter_name: str = "default", *, max_lora_rank: int = 16
) -> list[str]:
    """The reasons for which vLLM will refuse the adapter in ``folder``, or serve it wrongly.

    Args:
        max_lora_rank: vLLM's option of that name, and its default.

    Returns:
        One sentence for each reason; empty when vLLM will take it.

    Raises:
        AdapterFileError: there is no whole adapter in ``folder``.
    """
    saved = read_adapter(find_folder(folder, adapter_name))
    nested = {split_key(key)[0] for key in saved.tensors if split_key(key)[1].startswith(_INNER)}
    plain = {k: t for k, t in saved.tensors.items() if split_key(k)[0] not in nested}
    ranks = {tensor.shape[0] for key, tensor in plain.items() if "lora_A" in key}
    ranks |= {saved.config.r} if nested else set()  # there A holds those of all experts
    reasons = _refused(saved.config)
    if saved.config.target_parameters and (why := not_both(saved.tensors, nested)):
        reasons.append(why)
    if any(".base_layer." in split_key(key)[0] for key in saved.tensors):
        reasons.append("nn.MultiheadAttention: vLLM has no adapter for it. Merge the adapter.")
    if max(ranks, default=0) > max_lora_rank:
        reasons.append(
            f"its rank is {max(ranks)}, vLLM allows {max_lora_rank}: start it with "
            f"--max-lora-rank {max(ranks)} or more."
        )
    names = {key for key in saved.tensors if split_key(key)[1].removeprefix(_INNER) not in _TENSORS}
    if names and not reasons:
        reasons.append(f"vLLM does not know the tensor {min(names)} (of {len(names)} such).")
    return reasons


def _refused(config: LoraConfig) -> list[str]:
    faults = {
        "modules_to_save: vLLM takes no fully trained modules. Merge the adapter instead.": (
            config.modules_to_save
        ),
        "use_dora: vLLM has no DoRA. Merge the adapter instead.": config.use_dora,
        "use_qalora: vLLM has no pooled lora_A. Merge the adapter instead.": config.use_qalora,
        "bias: vLLM takes no trained biases. Merge the adapter instead.": config.bias != "none",
        "lora_bias: vLLM takes no bias in lora_B. Merge the adapter instead.": config.lora_bias,
        "rank_pattern or alpha_pattern: vLLM computes one scale for all layers and would serve "
        "the others wrongly. Train with one rank and one alpha, or merge the adapter.": (
            config.rank_pattern or config.alpha_pattern
        ),
        "target_parameters: of parameters vLLM takes gate_up_proj and down_proj of experts only. "
        "Merge the adapter.": any(
            name.rpartition(".")[2] not in _STACKS for name in config.target_parameters or ()
        ),
    }
    return [reason for reason, given in faults.items() if given]


def not_both(keys: Iterable[str], nested: set[str]) -> str:
    """Why vLLM would take the tensors of one stack for the other's; empty where it would not."""
    alone = {path for path, _ in map(split_key, keys) if path.endswith("experts")} - nested
    if not alone:
        return ""
    return (
        f"{min(alone)}: vLLM takes an adapter on one of gate_up_proj and down_proj for that of "
        f"down_proj. Adapt both, or merge the adapter."
    )
