"""`plain_adapter`: the update of an adapter's files as pairs of factors, with every scale in B.

For writers of other formats, which have room for A and B and one scale at most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from quantlora.checkpoint.keys import split_key
from quantlora.checkpoint.location import find_folder
from quantlora.checkpoint.portable import PAIRS, is_first, more_than_factors, portable
from quantlora.checkpoint.read import read_adapter
from quantlora.checkpoint.saved_adapter import SavedAdapter
from quantlora.config.lora_config import LoraConfig
from quantlora.config.patterns import by_pattern
from quantlora.errors import AdapterFileError

#: Between a module's path and the factors of each of its parameters but the last.
_INNER = "base_layer."
_A, _B = "lora_A.weight", "lora_B.weight"


@dataclass(frozen=True)
class Factors:
    """``ΔW = B · A``.

    Args:
        A: ``(r, in)``; of a stack of experts ``(experts, r, in)``.
        B: ``(out, r)``; of a stack ``(experts, out, r)``.
        is_embedding: A is by token, ``(r, tokens)``, and B gives ``(width, r)``.
    """

    A: Tensor
    B: Tensor
    is_embedding: bool = False


@dataclass(frozen=True)
class PlainAdapter:
    """What an adapter adds to its base.

    Args:
        base: the base's folder or hub id, where the files say it.
        layers: by the layer's path in the files.
        stacks: by path and name of a parameter, ``model.layers.0.mlp.experts.down_proj``.
    """

    base: str | None
    layers: dict[str, Factors]
    stacks: dict[str, Factors]


def plain_adapter(folder: str | os.PathLike[str], adapter_name: str = "default") -> PlainAdapter:
    """The update that the adapter in ``folder`` is, for a format with room for A and B only.

    Scales (rsLoRA, patterns of alpha) are multiplied into B in float32, and the layers have one
    rank, for which smaller ones are filled up with zeros. Stacks keep the rank that they have.

    Raises:
        AdapterFileError: there is no whole adapter in ``folder``, or it is more than A and B.
    """
    location = find_folder(folder, adapter_name)
    saved = read_adapter(location)
    _check_base(location, saved)
    stacks, rest = _split(location, saved)
    config = replace(saved.config, target_parameters=None)
    if reason := more_than_factors(config, rest):
        raise AdapterFileError(
            f"{location}: {reason}, and there is room for the A and B of matrices only. Merge it "
            f"into its base instead (`quantlora merge`, --merged)."
        )
    _, tensors = portable(config, rest, adapter_name)
    return PlainAdapter(saved.config.base_model_name_or_path, _layers(tensors), stacks)


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    found = {}
    for key in filter(is_first, tensors):
        path, name = split_key(key)
        other = tensors[key.removesuffix(name) + PAIRS[name]]
        found[path] = Factors(tensors[key], other, name != _A)
    return found


def _check_base(location: Path, saved: SavedAdapter) -> None:
    note = saved.note.get("base_change")
    if note and note["fits"] == "changed":
        raise AdapterFileError(
            f"{location}: the adapter belongs to a base that initializer {note['initializer']!r} "
            f"has changed. Save it for the original one, save_adapter(..., convert=True), or merge "
            f"it."
        )


def _split(location: Path, saved: SavedAdapter) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The stacks, and the tensors of everything else."""
    wanted = saved.config.target_parameters or ()
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in wanted))
    owners = {name.rpartition(".")[0].rpartition(".")[2] for name in wanted}
    stacks: dict[str, Factors] = {}
    rest: dict[str, Tensor] = {}
    nested: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.tensors.items():
        path, name = split_key(key)
        inside = path and path.rpartition(".")[2] in owners and name.endswith((_A, _B))
        (nested.setdefault(path, {}) if inside else rest)[name if inside else key] = tensor
    for path, tensors in nested.items():
        _check_layout(location, path, saved)
        found = dict(_stacks(path, tensors, names, saved.config))
        if len(found) * 2 != len(tensors):
            raise AdapterFileError(
                f"{location}: {path} has {len(tensors)} tensors, which are not those of its "
                f"parameters {', '.join(names)}. Load it with quantlora, and save it again."
            )
        stacks |= found
    return stacks, rest


def _stacks(
    path: str, tensors: Mapping[str, Tensor], names: list[str], config: LoraConfig
) -> Iterator[tuple[str, Factors]]:
    """The parameters of one module; the first in the module is the innermost wrapper."""
    picked = sorted(names, key=lambda name: not name.startswith("gate"))
    for depth, name in enumerate(reversed(picked)):
        A, B = (tensors.get(_INNER * depth + factor) for factor in (_A, _B))
        if A is None or B is None:
            return
        r = by_pattern(f"{path}.{name}", config.rank_pattern, config.r)
        alpha = by_pattern(f"{path}.{name}", config.alpha_pattern, config.lora_alpha)
        scaled = (B.float() * config.scaling(r, alpha)).to(B.dtype)
        by_expert = scaled.reshape(len(B), r, -1).permute(2, 0, 1).contiguous()
        yield f"{path}.{name}", Factors(A.reshape(-1, r, A.shape[1]), by_expert)


def _check_layout(location: Path, path: str, saved: SavedAdapter) -> None:
    if saved.says_old_experts:
        raise AdapterFileError(
            f"{location}: {path} has adapters on experts as PEFT before 0.19 wrote them. Load it "
            f"with quantlora on its model, which turns them over, and save it again."
        )
