"""QA-LoRA (Xu et al. 2023, arXiv:2309.14717): A sees one number per quantization group.

    y = x · dequantize(Q)ᵀ + bias + s · B(A(p)),    p_g = Σ x_i over the inputs i of group g

Because the update is the same for all inputs of a group, it can move into the group's zero-point:
with W = (code - zero) · scale, ``zero' = zero - s·(BA) / scale`` gives W + s·(BA) exactly, and the
model stays at its bits (section 3.3).

PEFT pools by the mean and multiplies by the number of groups; on the same A and B its update is
``in_features / group_size²`` times this one. Files keep PEFT's convention through ``lora_alpha``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantlora import ConfigError, LoraConfig, LoraLinear, Quantizer, pool, spread
from quantlora_qalora.merge import affine_of, affine_quantizer, moved


class QaloraLinear(LoraLinear):
    """QA-LoRA on a linear layer; adapters of this layer with a full-width A are plain LoRA."""

    variant: ClassVar[str] = "qalora"

    def new_factors(
        self, config: LoraConfig, r: int, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        A, B = super().new_factors(config, r, dtype)
        if config.variant != self.variant:
            return A, B
        groups = self.in_features // self._group_size(config)
        return nn.Linear(groups, r, bias=False, device=B.weight.device, dtype=dtype), B

    def _group_size(self, config: LoraConfig) -> int:
        """The adapter's group: the quantizer's, or a multiple of it that divides the width."""
        own = self.quantizer.group_size(self.base_layer)
        if own is None:
            raise ConfigError(
                f"{self.path}: use_qalora needs a format with groups of inputs, and "
                f"{self.quantizer.name!r} has none; use plain LoRA here, or another backend."
            )
        size = config.qalora_group_size or own
        if size % own or self.in_features % size:
            if not config.qalora_group_size:
                raise ConfigError(
                    f"{self.path}: use_qalora needs groups that divide the {self.in_features} "
                    f"inputs, and those of {self.quantizer.name!r} are of {own}. Pack with another "
                    f"group size, or leave this layer out (exclude_modules)."
                )
            raise ConfigError(
                f"{self.path}: qalora_group_size={size} does not fit: it must be a multiple of the "
                f"format's group of {own} and divide the {self.in_features} inputs. Leave it out "
                f"to take the format's own."
            )
        return size

    def delta(self, name: str, x: Tensor, product: Tensor, weight: Tensor | None) -> Tensor:
        return super().delta(name, self._pooled(name, x), product, weight)

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        update = super().delta_weight(name, weight)
        return spread(update, self.in_features, self._group_index(name))

    def alpha_factor(self, name: str) -> float:
        return self.in_features / self.groups(name) ** 2 if self.pools(name) else 1.0

    def file_fields(self, name: str) -> dict[str, Any]:
        size = self.in_features // self.groups(name)
        return {"qalora_group_size": size} if self.pools(name) else {}

    def file_notes(self, name: str) -> dict[str, Any]:
        """PEFT's files say neither whose scale it is nor what a group is."""
        if not self.pools(name):
            return {}
        ordered = self._group_index(name) is not None
        groups = (
            "in the base's order (g_idx), which PEFT does not know" if ordered else "neighbours"
        )
        return {"qalora_scale": "PEFT's", "qalora_groups": groups}

    def exact_base(
        self, names: Sequence[str], base: nn.Module, quantizer: Quantizer
    ) -> tuple[nn.Module, Quantizer]:
        """The same codes and scales with the adapters in the zero-points, which become float."""
        weight = affine_of(self, base, quantizer, names)
        updates = [LoraLinear.delta_weight(self, name, weight.scales) for name in names]
        bias = self.merged_bias(names, weight.scales, quantizer.bias(base))
        target = affine_quantizer(quantizer, self.path)
        return target.from_affine(moved(weight, updates), bias), target

    # -- groups

    def groups(self, name: str) -> int:
        """The width of the adapter's A."""
        return self.factors(name)[0].in_features

    def pools(self, name: str) -> bool:
        """Whether the adapter is QA-LoRA; else it is plain LoRA."""
        return self.groups(name) != self.in_features

    def _group_index(self, name: str) -> Tensor | None:
        index = self.quantizer.group_index(self.base_layer) if self.pools(name) else None
        if index is None:
            return None
        ratio = (int(index.max()) + 1) // self.groups(name)
        return index // ratio

    def input_scale(self, name: str) -> float:
        """The size of a group: A is given means, for a sum may be beyond half precision."""
        return self.in_features / self.groups(name)

    def _pooled(self, name: str, x: Tensor) -> Tensor:
        """The mean over each group, ``(..., groups)``."""
        if not self.pools(name):
            return x
        index, groups = self._group_index(name), self.groups(name)
        if index is None:
            return torch.unflatten(x, -1, (groups, -1)).mean(-1)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (pool(wide, groups, index) / self.input_scale(name)).to(x.dtype)
