"""`TiedLayer`: a layer that has another one's weight, and so its adapters (`ensure_weight_tying`).

Input and output embeddings are often one matrix. An adapter on the one is then one on the other:

    logits = x · (E + ΔE)ᵀ

PEFT keeps a second pair of factors for the head, which share memory with the first at the start and
part when the model is in half precision. Here there is one, in the layer that owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from torch import Tensor, nn


class TiedSource(Protocol):
    """The layer that owns the weight, wrapped."""

    def forward(self, x: Tensor) -> Any: ...

    @property
    def weight(self) -> Any: ...

    @property
    def adapters(self) -> tuple[str, ...]: ...

    def tied_output(self, head: nn.Module, x: Tensor) -> Tensor:
        """What ``head`` computes for ``x`` with this one's weight and adapters."""
        ...

    def tied_tensors(self, name: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """What PEFT's file of adapter ``name`` says of the head: this one's own once more.

        Args:
            value: gives a parameter's value, gathered where it is sharded.
        """
        ...


class TiedLayer(nn.Module):
    """``base_layer`` computed with the weight and the adapters of another layer."""

    def __init__(self, base_layer: nn.Module, source: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._source = [source]  # in a list: its parameters are not this one's
        self.train(base_layer.training)

    @property
    def source(self) -> TiedSource:
        return cast(TiedSource, self._source[0])

    @property
    def weight(self) -> Any:
        return self.source.weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_layer, nn.Embedding):
            return self.source.forward(x)  # its hooks are for its own calls
        return self.source.tied_output(self.base_layer, x)

    def __getattr__(self, name: str) -> Any:
        """What models read of a layer besides."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
        return getattr(self.base_layer, name)
