"""`LoraEmbedding`: LoRA on an embedding, a linear layer over one-hot tokens.

    y = E[x] + Σ s · B(A[x])        A (r, num_embeddings), B (embedding_dim, r)

PEFT's names: ``lora_embedding_A`` and ``lora_embedding_B``, parameters and not modules. Only rows
of A are read, so the cost is that of rank r per token, whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora.errors import ConfigError, LayerError
from quantlora.formats.layouts import EMBEDDINGS, embed_scaled
from quantlora.formats.twin import twin
from quantlora.layers.autograd import low_rank
from quantlora.layers.layer import LoraLayer
from quantlora.layers.sub_batch import first_input

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer


class LoraEmbedding(LoraLayer):
    """Dropout has no effect here, as in PEFT: tokens are not activations."""

    variant: ClassVar[str] = "lora"
    factor_names: ClassVar[tuple[str, str]] = ("lora_embedding_A", "lora_embedding_B")

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.lora_embedding_A = nn.ParameterDict()
        self.lora_embedding_B = nn.ParameterDict()

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return isinstance(base_layer, EMBEDDINGS)

    sequence_dims = 2

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(*args, **kwargs)
        x = self._tokens(args, kwargs, y)
        return self.add_deltas(y, self.delta, (x, y), self.sample_dim(x))

    @torch.no_grad()
    def _tokens(self, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
        """The rows that the base looks up; those of a subclass (BART's positions) by asking it."""
        base = self.base_layer
        if type(base).forward is nn.Embedding.forward or hasattr(base, "embed_scale"):
            return first_input(args, kwargs)
        numbers = torch.arange(self.in_features, device=y.device, dtype=torch.float32)
        asked = torch.stack([numbers, torch.ones_like(numbers)], dim=1)
        found = twin(base, {"weight": asked}).forward(*args, **kwargs)
        tokens: Tensor = found[..., 0].round().long()
        plain = found.shape[:-1] == y.shape[:-1] and bool((found[..., 1] == 1).all())
        weight = cast(Tensor, base.weight)
        if not plain or not torch.equal(F.embedding(tokens, weight).to(y.dtype), y):
            raise LayerError(
                f"{self.path}: {type(base).__name__} does more than look rows up, and an adapter "
                f"would pass that by; leave this layer out."
            )
        return tokens

    def delta(self, name: str, x: Tensor, base: Tensor) -> Tensor:
        """What adapter ``name`` adds to the output for tokens ``x``; the base's is ``base``."""
        A, B = self.lora_embedding_A[name], self.lora_embedding_B[name]
        padding = cast("int | None", self.base_layer.padding_idx)
        by_count = cast(bool, self.base_layer.scale_grad_by_freq)
        rows = F.embedding(x, A.t(), padding, scale_grad_by_freq=by_count)
        return embed_scaled(self.base_layer, self.scaling.operand(name) * (rows @ B.t()))

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        update: Tensor = self.lora_embedding_B[name] @ self.lora_embedding_A[name]
        return self.scaling[name] * update

    def tied_output(self, head: nn.Module, x: Tensor) -> Tensor:
        """What ``head``, which has this embedding's weight, computes: ``x · (E + ΔE)ᵀ``."""
        weight = cast(Tensor, self.base_layer.weight)
        y = F.linear(x, weight, getattr(head, "bias", None))
        return self.add_deltas(y, self._tied_delta, (x,))

    def _tied_delta(self, name: str, x: Tensor) -> Tensor:
        A, B = self.lora_embedding_A[name].t(), self.lora_embedding_B[name].t()
        return low_rank(self.lora_dropout[name](x), B, A, self.scaling.operand(name))

    def tied_tensors(self, name: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The factors as PEFT has them in its file for a linear head."""
        A, B = value(self.lora_embedding_A[name]), value(self.lora_embedding_B[name])
        return {"lora_A.weight": B.t(), "lora_B.weight": A.t()}

    # -- bookkeeping: parameters where other layers have modules

    def by_name(self) -> dict[str, Any]:
        factors = {
            "lora_embedding_A": self.lora_embedding_A,
            "lora_embedding_B": self.lora_embedding_B,
        }
        return {**super().by_name(), **factors}

    def add_factors(self, name: str, config: LoraConfig, r: int, dtype: torch.dtype) -> None:
        if config.lora_bias:
            raise ConfigError(f"{self.path}: an embedding has no bias, so lora_bias cannot be.")
        factory_kwargs: dict[str, Any] = {
            "device": self.quantizer.device(self.base_layer),
            "dtype": dtype,
        }
        self.lora_embedding_A[name] = nn.Parameter(
            torch.zeros(r, self.in_features, **factory_kwargs)
        )
        self.lora_embedding_B[name] = nn.Parameter(
            torch.zeros(self.out_features, r, **factory_kwargs)
        )

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        self._known(name)
        sides = (self.lora_embedding_A, self.lora_embedding_B)
        return {key: side[name] for key, side in zip(self.factor_names, sides, strict=True)}
