"""`TrainedTokens`: some rows of an embedding or a head trained in full.

    y = E'[x]      E' = E with the adapter's rows at its tokens (``trainable_token_indices``)

PEFT's name for the rows is ``token_adapter.trainable_tokens_delta``, but they are values and no
updates, so new tokens come back whatever the base has there. In a head they are rows of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora.errors import ConfigError
from quantlora.formats.layouts import embed_scaled
from quantlora.layers.layer import LoraLayer
from quantlora.layers.sub_batch import pick_samples

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer

_ROWS = "token_adapter.trainable_tokens_delta"


class TrainedTokens(LoraLayer):
    """An embedding or a linear head, and by adapter name the rows of its tokens ``(k, dim)``."""

    variant: ClassVar[str] = "tokens"
    factor_names: ClassVar[tuple[str, str]] = ("", "")  # no A and no B

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        self.trainable_tokens_delta = nn.ParameterDict()
        self.token_indices: dict[str, tuple[int, ...]] = {}

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return False  # no kind of layer: it is planned for its tokens alone

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if not isinstance(self.base_layer, nn.Embedding):
            return self.columns(x, y, self.base_layer)
        for name, rows in self.adapters_by_sample(x):
            replaced = self._embedded(name, pick_samples(x, rows), pick_samples(y, rows))
            y = replaced if rows is None else y.index_copy(0, rows, replaced)
        return y

    def _embedded(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """``y`` with the adapter's rows where ``x`` is one of its tokens."""
        tokens, order = self._index(name, x).sort()
        at = torch.searchsorted(tokens, x).clamp(max=len(tokens) - 1)
        hit: Tensor = torch.eq(tokens[at], x)
        rows = self.trainable_tokens_delta[name]
        spare = rows.new_zeros(1, rows.shape[1])  # for the others, which must not count as it
        values = F.embedding(
            torch.where(hit, order[at], len(tokens)),
            torch.cat([rows, spare]),
            scale_grad_by_freq=cast(bool, self.base_layer.scale_grad_by_freq),
        )
        values = embed_scaled(self.base_layer, values)
        padding = cast("int | None", self.base_layer.padding_idx)
        if padding is not None:  # it is not trained
            values = torch.where(torch.eq(x, padding)[..., None], values.detach(), values)
        return torch.where(hit[..., None], values.to(y.dtype), y)

    def columns(self, x: Tensor, y: Tensor, head: nn.Module) -> Tensor:
        """The logits ``y`` of ``head`` for ``x`` with those of the trained tokens in place."""
        bias = cast("Tensor | None", getattr(head, "bias", None))
        for name, rows in self.adapters_by_sample(x):
            index, part = self._index(name, x), pick_samples(y, rows)
            weight = self.trainable_tokens_delta[name].to(part.dtype)
            logits = F.linear(
                pick_samples(x, rows).to(part.dtype), weight, None if bias is None else bias[index]
            )
            part = part.index_copy(-1, index, logits.to(part.dtype))
            y = part if rows is None else y.index_copy(0, rows, part)
        return y

    def tied_output(self, head: nn.Module, x: Tensor) -> Tensor:
        """What ``head``, which has this embedding's weight, computes with the same rows."""
        return self.columns(x, F.linear(x, self._frozen, getattr(head, "bias", None)), head)

    def tied_tensors(self, name: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Nothing: PEFT's file has the rows once."""
        return {}

    @property
    def _frozen(self) -> Tensor:
        return cast(Tensor, self.base_layer.weight)

    def _index(self, name: str, like: Tensor) -> Tensor:
        return torch.tensor(self.token_indices[name], device=like.device)

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        """What the rows are more than those of ``weight``."""
        side = 1 if isinstance(self.base_layer, nn.Embedding) else 0  # (dim, vocabulary)
        index, rows = self._index(name, weight), self.trainable_tokens_delta[name]
        values = rows.t() if side else rows
        plain = weight.index_select(side, index)
        zeros = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, values.dtype))
        return zeros.index_copy(side, index, values.to(zeros.dtype) - plain.to(zeros.dtype))

    def merged_parameters(
        self, names: Sequence[str], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The rows as they are, not as a sum that rounds."""
        side = 1 if isinstance(self.base_layer, nn.Embedding) else 0
        for name in names:
            rows = self.trainable_tokens_delta[name]
            wide = weight.to(torch.promote_types(weight.dtype, rows.dtype))
            values = (rows.t() if side else rows).to(wide.dtype)
            weight = wide.index_copy(side, self._index(name, wide), values)
        return weight, bias

    # -- bookkeeping

    def by_name(self) -> dict[str, Any]:
        rows = {
            "trainable_tokens_delta": self.trainable_tokens_delta,
            "token_indices": self.token_indices,
        }
        return {**super().by_name(), **rows}

    def add_tokens(self, name: str, tokens: tuple[int, ...], dtype: torch.dtype) -> None:
        """Give adapter ``name`` rows for ``tokens``, with the values that the base has."""
        weight = self._frozen
        if max(tokens) >= len(weight) or min(tokens) < 0:
            raise ConfigError(
                f"{self.path}: trainable_token_indices names token {max(tokens, key=abs)}, and "
                f"there are {len(weight)}: call model.resize_token_embeddings first."
            )
        index = torch.tensor(tokens, device=weight.device)
        rows = weight.detach().index_select(0, index).to(dtype)
        self.trainable_tokens_delta[name] = nn.Parameter(rows)
        self.token_indices[name] = tokens
        self.lora_dropout[name] = nn.Identity()
        self.r[name], self.lora_alpha[name], self.scaling[name] = len(tokens), len(tokens), 1.0

    def add_factors(self, name: str, config: LoraConfig, r: int, dtype: torch.dtype) -> None:
        raise NotImplementedError  # `add_tokens` is in its place

    def adapter_tensors(self, name: str) -> dict[str, nn.Parameter]:
        self._known(name)
        return {_ROWS: self.trainable_tokens_delta[name]}

    def overlap(self, names: Sequence[str]) -> set[int]:
        """Tokens that more than one of the adapters ``names`` has rows for."""
        given = [t for n in dict.fromkeys(names) for t in self.token_indices.get(n, ())]
        return {token for token in given if given.count(token) > 1} if len(names) > 1 else set()


def wanted_tokens(
    config: LoraConfig, modules: Mapping[str, nn.Module], source: str | None
) -> dict[str, tuple[int, ...]]:
    """The tokens that ``config`` trains by the path of their module.

    Args:
        source: the path of the input embeddings: what a plain list of indices means.
    """
    asked = config.trainable_token_indices
    if not asked:
        return {}
    named = asked if isinstance(asked, dict) else {source or "embed_tokens": asked}
    found: dict[str, tuple[int, ...]] = {}
    for name, tokens in named.items():
        paths = [path for path in modules if path == name or path.endswith(f".{name}")]
        if not paths or not tokens or len(set(tokens)) < len(tokens):
            raise ConfigError(
                f"trainable_token_indices: {name!r} must name a module of the model (it has "
                f"{len(paths)} of that name) and each token once, got {tokens!r:.80}."
            )
        found |= dict.fromkeys(paths, tuple(tokens))
    return found
