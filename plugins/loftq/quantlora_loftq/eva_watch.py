"""One pass of EVA over some data: the principal directions of each layer's input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import chain, repeat
from typing import Any

from torch import Tensor, nn

from quantlora import ConfigError, LoraLayer, adapters_disabled
from quantlora_loftq.eva_config import EvaConfig
from quantlora_loftq.incremental import IncrementalDirections
from quantlora_loftq.ranks import redistribute

#: Times that the batches are gone through at most, until the directions are settled.
_PASSES = 20


def collect(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Mapping[str, LoraLayer],
    ranks: Mapping[str, int],
    settings: EvaConfig,
) -> dict[str, IncrementalDirections]:
    """The directions of each layer's input; layers that get the very same one share them."""
    watch = _Watch(layers, ranks, settings)
    again = batches if isinstance(batches, (list, tuple)) else list(batches)
    with ExitStack() as stack:
        stack.enter_context(adapters_disabled(model))
        stack.callback(model.train, model.training)
        model.eval()
        for path, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(watch.hook(path)).remove)
        for batch in chain.from_iterable(repeat(again, _PASSES)):
            watch.begin(batch)
            model(**batch) if isinstance(batch, Mapping) else model(batch)
            if watch.settled():
                break
    lacking = [path for path in layers if watch.of(path).directions is None]
    if lacking:
        raise ConfigError(
            f"{lacking[0]} (and {len(lacking) - 1} more): no batch has as many tokens as EVA looks "
            f"for directions, r * rho = {round(ranks[lacking[0]] * settings.rho)}. Give larger "
            f"batches, or a smaller rho."
        )
    return {path: watch.of(path) for path in layers}


class _Watch:
    """The hooks of one collection."""

    def __init__(
        self, layers: Mapping[str, LoraLayer], ranks: Mapping[str, int], settings: EvaConfig
    ) -> None:
        self.settings, self.ranks = settings, ranks
        self.most = {
            path: min(round(ranks[path] * settings.rho), *_limits(layer))
            for path, layer in layers.items()
        }
        self.leaders: dict[str, str] = {}
        self.found: dict[str, IncrementalDirections] = {}

    def of(self, path: str) -> IncrementalDirections:
        leader = self.leaders.get(path, path)
        return self.found.get(leader, IncrementalDirections(1))

    def begin(self, batch: Any) -> None:
        """Before each forward: which tokens count, and no input seen yet."""
        self.mask = _mask(batch, self.settings)
        self.seen: dict[int, tuple[str, Tensor]] = {}

    def hook(self, path: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            first, _ = self.seen.setdefault(id(x), (path, x))  # held: an id is not given twice
            leader = self.leaders.setdefault(path, first)
            if leader != path and first != leader:  # it had another's input before, not now
                leader = self.leaders[path] = path
            if leader == path:
                most = max(
                    k for layer, k in self.most.items() if self.leaders.get(layer, path) == path
                )
                self.found.setdefault(path, IncrementalDirections(most)).add(self._rows(x))

        return look

    def _rows(self, x: Tensor) -> Tensor:
        """The input's tokens ``(n, width)`` that count."""
        if self.mask is not None and x.shape[:-1] == self.mask.shape:
            return x[self.mask.to(x.device)]
        return x.reshape(-1, x.shape[-1])

    def settled(self) -> bool:
        shares = {path: self.of(path).shares for path in self.most if self.of(path).count}
        if len(shares) < len(self.most):
            return False
        dealt = redistribute(shares, self.ranks, self.settings.rho)
        return all(self.of(path).settled(r, self.settings.tau) for path, r in dealt.items())


def _limits(layer: LoraLayer) -> tuple[int, int]:
    return layer.in_features, layer.out_features


def _mask(batch: Any, settings: EvaConfig) -> Tensor | None:
    """Tokens ``(batch, time)`` that count; None for all of them."""
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("attention_mask")
    mask = None if mask is None else mask.bool()
    labels = batch.get("labels")
    if settings.use_label_mask and labels is not None and labels.ndim == 2:
        kept = labels != settings.label_mask_value
        mask = kept if mask is None else mask & kept.to(mask.device)
    return mask
