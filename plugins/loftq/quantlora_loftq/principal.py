"""Initializers that take A and B out of the weight itself: PiSSA, OLoRA; and orthogonal A and B.

The first two move a part of the weight from the base into the adapter, so the base is replaced,
and packed again in its format. All of them read ``dequantize()``, never the packed storage.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from quantlora import BackendError, ConfigError, InitContext, Initializer, LoraLayer, linear_from
from quantlora_loftq.initializers import check_scaling, factor_A, seed_for, set_factors
from quantlora_loftq.low_rank import LowRank, low_rank

_NITER = re.compile(r"pissa_niter_(\d{1,3})")


class _Moving(Initializer):
    """W = (W - s·B·A) + s·B·A: what A and B take, the base gives."""

    changes_base: ClassVar[bool] = True

    @abstractmethod
    def split(
        self, weight: Tensor, r: int, scaling: float, context: InitContext
    ) -> tuple[Tensor, Tensor]:
        """A ``(r, in)`` and B ``(out, r)`` out of ``weight`` ``(out, in)``."""

    @torch.no_grad()
    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        self._check_layer(layer, context)
        check_scaling(layer, context)
        base, quantizer, name = layer.base_layer, layer.quantizer, context.adapter
        weight = context.reference() if context.reference else quantizer.dequantize(base)
        parameter = factor_A(layer, context)
        weight = weight.detach().to(parameter.device, parameter.dtype)
        scaling = layer.scaling[name]
        A, B = self.split(weight, layer.r[name], scaling, context)
        set_factors(layer, context, A, B)
        rest = linear_from(weight - scaling * (B @ A), quantizer.bias(base))
        packed = quantizer.quantize(rest, like=base)
        quantizer.prepare(packed, context.path)
        layer.base_layer = packed.train(base.training)

    def _check_layer(self, layer: LoraLayer, context: InitContext) -> None:
        others = [name for name in layer.adapters if name != context.adapter]
        if others:
            raise ConfigError(
                f"{context.path}: {self.name!r} changes the base, which {', '.join(others)} "
                f"uses too. Use it for the first adapter only."
            )
        if not layer.quantizer.can_quantize:
            raise BackendError(
                f"{context.path}: {self.name!r} changes the base, and format "
                f"{layer.quantizer.name!r} cannot be packed again here. Use init_lora_weights="
                f"'loftq' with a reference, or 'orthogonal', which leave the base as it is."
            )


class PiSSA(_Moving):
    """The principal singular directions of the weight (Meng et al. 2024, arXiv:2404.02948).

    ``"pissa_niter_4"``: by 4 passes of a randomized SVD, as PEFT has it.
    """

    name: ClassVar[str] = "pissa"

    def answers_to(self, name: str) -> bool:
        return super().answers_to(name) or _NITER.fullmatch(name) is not None

    def split(
        self, weight: Tensor, r: int, scaling: float, context: InitContext
    ) -> tuple[Tensor, Tensor]:
        seed = seed_for(context.path, 0)
        passes = _NITER.fullmatch(str(context.config.init_lora_weights).lower())
        if passes is None:
            return low_rank(weight, r, seed=seed).factors(scaling)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = torch.svd_lowrank(weight, q=r, niter=int(passes[1]))
        return LowRank(*found).factors(scaling)


class OLoRA(_Moving):
    """The first columns and rows of the weight's QR (Büyükakyüz 2024, arXiv:2406.01775)."""

    name: ClassVar[str] = "olora"

    def split(
        self, weight: Tensor, r: int, scaling: float, context: InitContext
    ) -> tuple[Tensor, Tensor]:
        Q, R = torch.linalg.qr(weight)
        return R[:r] / scaling, Q[:, :r]


class Orthogonal(Initializer):
    """A and B random with ``B · A = 0``: the base model at first, both trained from step one.

    The columns of one random rotation are dealt to A and B in turn, so that what A writes B
    does not read. The base stays as it is.
    """

    name: ClassVar[str] = "orthogonal"
    #: Size of the entries, of the order of Kaiming's for usual widths.
    _SIZE: ClassVar[float] = 0.1

    @torch.no_grad()
    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        r = layer.r[context.adapter]
        if r % 2:
            raise ConfigError(f"{context.path}: 'orthogonal' needs an even rank, got r={r}.")
        rotation = torch.linalg.qr(torch.randn(r, r, dtype=torch.float64)).Q
        writes, reads = rotation[:, 0::2], rotation[:, 1::2]
        A = writes @ torch.randn(r // 2, layer.in_features, dtype=torch.float64) * self._SIZE
        B = torch.randn(layer.out_features, r // 2, dtype=torch.float64) @ reads.t() * self._SIZE
        set_factors(layer, context, A, B)
