"""`TiedLayer`: a layer that has another one's weight, and so its adapters (`ensure_weight_tying`).

Input and output embeddings are often one matrix. An adapter on the one is then one on the other:

    logits = x · (E + ΔE)ᵀ

PEFT keeps a second pair of factors for the head, which share memory with the first at the start and
part when the model is in half precision. Here there is one, in the layer that owns it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from quantlora.layers.adapter_module import AdapterModule


class TiedLayer(nn.Module):
    """``base_layer`` computed with the weight and the adapters of another layer."""

    def __init__(self, base_layer: nn.Module, source: AdapterModule) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._source = [source]  # in a list: its parameters are not this one's
        self.train(base_layer.training)

    @property
    def source(self) -> AdapterModule:
        """The layer that owns the weight, wrapped."""
        return self._source[0]

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
