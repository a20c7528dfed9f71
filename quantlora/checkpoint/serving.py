"""Which servers compute an adapter right, and what to do about the others.

From the sources and threads of vLLM 0.33 (``vllm/lora/``), SGLang 0.5.23 (sgl-project/sglang#40835,
#14105, #25528), llama.cpp at 0b03adaa (``convert_lora_to_gguf.py``, ``llama-adapter.h``), LMDeploy
(``lmdeploy/pytorch/adapter/adapter.py``) and TensorRT-LLM (NVIDIA/TensorRT-LLM#1668, #1669). None
of them was run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.location import find_folder
from quantlora.checkpoint.read import read_adapter
from quantlora.checkpoint.saved_adapter import SavedAdapter
from quantlora.checkpoint.vllm import not_both


class Effect(str, Enum):
    """What a server does with something an adapter has, from the best to the worst."""

    NONE = "yes"
    OPTION = "with an option"
    UNKNOWN = "not known"
    WRONG = "wrong, without a word"
    REFUSED = "no"


class Remedy(str, Enum):
    """What makes an adapter one that the server takes."""

    OPTION = "option"
    PORTABLE = "portable"
    MERGE = "merge"
    CONVERT = "convert"


@dataclass(frozen=True)
class ServingReason:
    """Why a server does not take an adapter as it is."""

    effect: Effect
    text: str
    remedy: Remedy


@dataclass(frozen=True)
class ServingVerdict:
    """What ``engine`` does with an adapter."""

    engine: str
    reasons: tuple[ServingReason, ...]

    @property
    def effect(self) -> Effect:
        """That of the worst reason."""
        order = list(Effect)
        worst = max((order.index(reason.effect) for reason in self.reasons), default=0)
        return order[worst]


_REFUSED, _WRONG, _UNKNOWN = Effect.REFUSED, Effect.WRONG, Effect.UNKNOWN
#: What no server takes, and merging does away with.
_NOWHERE: dict[str, tuple[Effect, str]] = {
    "DoRA": (_REFUSED, "it has no DoRA"),
    "trained biases": (_REFUSED, "it takes no trained biases"),
    "modules trained in full": (_REFUSED, "it takes no modules trained in full"),
    "trained tokens": (_REFUSED, "it takes no trained tokens"),
    "a variant of its own": (_REFUSED, "it knows A and B of plain LoRA only"),
    "other tensors": (_REFUSED, "it knows the tensors of linear layers only"),
    "a changed base": (_WRONG, "its initializer has changed the base, which is served unchanged"),
}
_ONE_SCALE = "it computes lora_alpha / r once for all layers"
_EXPERTS_UNREAD = "PEFT's files for experts in one parameter are not read"
#: By engine: what it does with what an adapter has; what is not here it computes right.
_ENGINES: dict[str, dict[str, tuple[Effect, str]]] = {
    "vLLM": {
        "rank": (Effect.OPTION, "it allows rank 16: start it with --max-lora-rank {}"),
        "patterns": (_WRONG, _ONE_SCALE),
        "one stack": (_WRONG, "an adapter on one of gate_up_proj and down_proj is taken for both"),
        "other parameters": (_REFUSED, "of parameters it takes the experts' only"),
    },
    "SGLang": {
        "rank": (Effect.OPTION, "start it with --max-lora-rank {}"),
        "rsLoRA": (_WRONG, "it overlooks use_rslora (sgl-project/sglang#40835)"),
        "patterns": (_WRONG, _ONE_SCALE),
        "experts": (_WRONG, "experts are left out, unless --lora-strict-loading refuses the file"),
        "other parameters": (_REFUSED, _EXPERTS_UNREAD),
        "trained tokens": (_REFUSED, "it takes no added tokens (sgl-project/sglang#14105)"),
    },
    "llama.cpp": {
        "other parameters": (_REFUSED, "of parameters it has the experts' only"),
    },
    "LMDeploy": {
        "embeddings": (_REFUSED, "it adapts no embeddings"),
        "experts": (_REFUSED, _EXPERTS_UNREAD),
        "other parameters": (_REFUSED, _EXPERTS_UNREAD),
    },
    "TensorRT-LLM": {
        "rank": (Effect.OPTION, "build the engine with max_lora_rank {}"),
        "patterns": (_UNKNOWN, "whether it reads rank_pattern and alpha_pattern was not found"),
        "embeddings": (_UNKNOWN, "whether it takes adapters on embeddings was not found"),
        "experts": (_UNKNOWN, "whether it reads PEFT's files for experts was not found"),
        "other parameters": (_UNKNOWN, "whether it takes adapted parameters was not found"),
    },
}
_PLAIN = ("rsLoRA", "patterns")
#: The rank that vLLM takes without being told.
_USUAL_RANK = 16
_STACKS = ("gate_up_proj", "down_proj")
_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
_INNER = "base_layer."


def check_serving(
    folder: str | os.PathLike[str], adapter_name: str = "default"
) -> list[ServingVerdict]:
    """What vLLM, SGLang, llama.cpp, LMDeploy and TensorRT-LLM would do with an adapter.

    llama.cpp is judged by the file that quantlora writes for it, in which scales are right; its own
    converter overlooks ``use_rslora`` and ``alpha_pattern``.

    Returns:
        One verdict for each engine; its reasons are empty where it computes the adapter right.

    Raises:
        AdapterFileError: there is no whole adapter in ``folder``.
    """
    saved = read_adapter(find_folder(folder, adapter_name))
    found = _has(saved)
    return [
        ServingVerdict(engine, tuple(_reasons(found, {**_NOWHERE, **effects}, saved)))
        for engine, effects in _ENGINES.items()
    ]


def _reasons(
    found: list[str], effects: Mapping[str, tuple[Effect, str]], saved: SavedAdapter
) -> list[ServingReason]:
    ranks = _largest_rank(saved)
    return [
        ServingReason(effects[what][0], effects[what][1].format(ranks), _remedy(what))
        for what in found
        if what in effects
    ]


def _remedy(what: str) -> Remedy:
    if what == "rank":
        return Remedy.OPTION
    if what in _PLAIN:
        return Remedy.PORTABLE
    return Remedy.CONVERT if what == "a changed base" else Remedy.MERGE


def _has(saved: SavedAdapter) -> list[str]:
    """What the adapter has beside one A and B for each linear layer."""
    config, note = saved.config, saved.note.get("base_change")
    names = {split_key(key)[1] for key in saved.tensors}
    parameters = {name.rpartition(".")[2] for name in config.target_parameters or ()}
    nested = {split_key(key)[0] for key in saved.tensors if split_key(key)[1].startswith(_INNER)}
    other = {name for name in names if name.removeprefix(_INNER) not in _FACTORS}
    special = {
        "DoRA": config.use_dora,
        "trained biases": config.bias != "none" or config.lora_bias,
        "modules trained in full": config.modules_to_save,
        "trained tokens": config.trainable_token_indices,
        "a variant of its own": config.variant not in ("lora", "dora"),
    }
    found = {
        **special,
        "other tensors": other and not any(special.values()),
        "a changed base": note and note["fits"] == "changed",
        "rsLoRA": config.use_rslora,
        "patterns": config.rank_pattern or config.alpha_pattern,
        "embeddings": any(name.startswith("lora_embedding") for name in names),
        "experts": parameters & set(_STACKS),
        "one stack": config.target_parameters and not_both(saved.tensors, nested),
        "other parameters": parameters - set(_STACKS),
        "rank": _largest_rank(saved) > _USUAL_RANK,
    }
    return [what for what, there in found.items() if there]


def _largest_rank(saved: SavedAdapter) -> int:
    """Of the layers; A of experts holds those of all of them."""
    if saved.config.target_parameters:
        return max([saved.config.r, *saved.config.rank_pattern.values()])
    ranks = (len(t) for key, t in saved.tensors.items() if split_key(key)[1] in _FACTORS[::2])
    return max(ranks, default=saved.config.r)
