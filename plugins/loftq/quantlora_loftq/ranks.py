"""Ranks dealt out anew among the layers of an adapter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from quantlora import LoraLayer, known_adapter, lora_layers


def redistribute(
    shares: Mapping[str, Tensor], ranks: Mapping[str, int], rho: float
) -> dict[str, int]:
    """The rank of each layer: the budget goes to the directions that explain most, in any layer.

    Args:
        shares: of the variance, falling, by path; at most ``ranks * rho`` of them count.
        ranks: the ranks asked for; their sum is the budget.
    """
    most = {path: min(round(ranks[path] * rho), len(of_layer)) for path, of_layer in shares.items()}
    every = [
        (float(share), path)
        for path, of_layer in shares.items()
        for share in of_layer[: most[path]]
    ]
    every.sort(key=lambda pair: -pair[0])
    dealt = dict.fromkeys(shares, 0)
    for _, path in every[: sum(ranks.values())]:
        dealt[path] += 1
    return dealt


def with_rank(
    model: nn.Module, path: str, adapter: str, r: int, A: Tensor, keep_scaling: bool
) -> None:
    """Give ``adapter`` at ``path`` rank ``r``, ``A`` ``(r, in)`` and a B of zeros; 0 removes it."""
    layer = dict(lora_layers(model))[path]
    old, before = layer.r[adapter], layer.adapter_tensors(adapter)["lora_A.weight"]
    config, active, alpha = known_adapter(model, adapter), layer.active, layer.lora_alpha[adapter]
    dtype, trained = before.dtype, before.requires_grad
    layer.remove_adapter(adapter)
    if not r:
        _bare(model, path, layer)
        return
    alpha = alpha * r / old if keep_scaling else alpha
    layer.add_adapter(adapter, config, r, alpha, dtype)
    layer.adapter_tensors(adapter)["lora_A.weight"].data.copy_(A)
    layer.finish_adapter(adapter, config)
    layer.activate(active)
    layer.train(layer.training)
    for parameter in layer.adapter_tensors(adapter).values():
        parameter.requires_grad_(trained)


def _bare(model: nn.Module, path: str, layer: LoraLayer) -> None:
    if not layer.adapters:
        model.set_submodule(path, layer.base_layer)
