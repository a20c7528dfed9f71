"""`LoraLinear`: the LoRA layer over any weight format, and the file to read first.

    y = x · dequantize(Q)ᵀ + bias + Σ s · B(A(dropout(x)))      over the active adapters

With in_features = 6, out_features = 4, r = 2, a batch of 3 samples of 5 tokens:

    x (3, 5, 6) ──┬── dequantize(Q)ᵀ (6, 4) ─────────────────── + bias ──┐
                  │      made now, freed now, made again in backward     │
                  │                                                      + ── y (3, 5, 4)
                  └── dropout ── Aᵀ (6, 2) ── (3, 5, 2) ── Bᵀ (2, 4) · s ┘
                                              kept, with x, for backward

    A.weight (r, in) = (2, 6)    B.weight (out, r) = (4, 2)    Q = base_layer, weight (4, 6)

LoRA: Hu et al. 2021, arXiv:2106.09685, eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantlora.errors import LayerError
from quantlora.formats.around import must_be_called
from quantlora.formats.autocast import working_dtype
from quantlora.formats.inference_memory import copied_product, drop_copy
from quantlora.formats.layouts import is_linear_kind
from quantlora.formats.offloaded import is_offloaded, onloaded, read
from quantlora.formats.seen import Seen
from quantlora.formats.transforms import transformed
from quantlora.layers.autograd import Weight, add_low_rank, frozen_linear, low_rank
from quantlora.layers.fused_layer import can_draw_again, fused_product
from quantlora.layers.layer import LoraLayer
from quantlora.layers.one_token import inferred
from quantlora.layers.sub_batch import only_input

if TYPE_CHECKING:
    from quantlora.config.lora_config import LoraConfig
    from quantlora.formats.quantizer import Quantizer


class LoraLinear(LoraLayer):
    """LoRA on a linear layer. Variants override `delta`, `delta_weight` and `delta_bias`."""

    variant: ClassVar[str] = "lora"

    def __init__(self, base_layer: nn.Module, quantizer: Quantizer, path: str) -> None:
        super().__init__(base_layer, quantizer, path)
        # In a tuple, so it is not a submodule again.
        self._called = (base_layer, must_be_called(base_layer, quantizer))

    @classmethod
    def accepts(cls, base_layer: nn.Module, quantizer: Quantizer) -> bool:
        return is_linear_kind(base_layer)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = only_input(args, kwargs, self.path)
        if not x.is_floating_point():  # else integer weights would be multiplied, without a word
            raise LayerError(f"{self.path}: the input is {x.dtype}, a linear layer takes floats.")
        token = inferred(self, x)
        if token is not None:
            return token
        if self.called:
            y = product = cast(Tensor, self.base_layer(x))
            weight = None
        else:
            with onloaded(self.base_layer):
                weight = self.forward_weight(x)
                fused = self.fused_output(x, weight)
                if fused is not None:
                    return fused
                product = self.base_product(x, weight)
                y = self._with_bias(product, x)
        if self._adds_in_place():
            return self._add_in_place(y, x)

        def delta(name: str, x: Tensor, product: Tensor) -> Tensor:
            return self.delta(name, self.lora_dropout[name](x), product, weight)

        return self.add_deltas(y, delta, (x, product), self.sample_dim(x))

    def _adds_in_place(self) -> bool:
        """Whether nobody needs the output as it was before: no backward, no other variant."""
        if torch.is_grad_enabled() or self.training or self.called:
            return False
        plain = type(self).delta is LoraLinear.delta  # s · B(A(x)) and a bias
        return plain and not (torch.compiler.is_compiling() or transformed())

    def _add_in_place(self, y: Tensor, x: Tensor) -> Tensor:
        if self.sample_adapters is None or not self.enabled:
            for name in self.active_unmerged:
                self._add_to(y, name, x)
            return y
        dim = self.sample_dim(x)
        batch = self.sub_batches(x, dim)
        parts = zip(batch.names, batch.split(x, dim), strict=True)
        with batch.changing(y, dim) as outputs:
            for out, (name, part) in zip(outputs, parts, strict=True):
                self._add_to(out, name, part)
        return y

    def _add_to(self, y: Tensor, name: str, x: Tensor) -> None:
        A, B = self.factors(name)
        scale = self.scaling[name] * self.input_scale(name)
        add_low_rank(y, x, A.weight, B.weight, scale)
        if B.bias is not None:
            y.add_(B.bias, alpha=self.scaling[name])

    # -- while nothing is trained (`inferred`)

    def adds(self, names: Sequence[str]) -> bool:
        """Whether the output is the base's, changed in place by the adapters ``names``."""
        kind = type(self)
        return kind.delta is LoraLinear.delta and kind.base_product is LoraLinear.base_product

    def adapted(self, product: Tensor, x: Tensor, names: Sequence[str]) -> Tensor:
        """The output of ``names``, for which `adds` holds.

        Args:
            product: ``x · dequantize(Q)ᵀ``, in memory of its own, which is changed.
        """
        y = self._with_bias(product, x)
        for name in names:
            self._add_to(y, name, x)
        return y

    def fused_output(self, x: Tensor, weight: Tensor | None) -> Tensor | None:
        """The output as one function with one backward; None where it cannot be one."""
        bias = self.quantizer.bias(self.base_layer)
        return fused_product(self, x, weight, bias, keeps_input=False)

    def fuses(self, name: str, x: Tensor) -> bool:
        """Whether adapter ``name`` is ``s · B(A(dropout(x)))`` with a mask to draw again."""
        if type(self).delta is not LoraLinear.delta:
            return False
        return not self.has_bias(name) and can_draw_again(self, name, x)

    # -- the base

    @property
    def called(self) -> bool:
        """Whether the base has more around it than its weight tells, so that it must be called."""
        return self._called[0] is self.base_layer and self._called[1]

    def base_dtype(self, x: Tensor) -> torch.dtype:
        """That of the product with the frozen weight."""
        return working_dtype(x, self.quantizer.compute_dtype(self.base_layer) or x.dtype)

    def base_product(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """``x · dequantize(Q)ᵀ`` in the layer's compute dtype; ``weight`` if it is given."""
        x = x.to(self.base_dtype(x))
        fast = self._inference_product(x) if weight is None else None
        if fast is not None:
            return fast
        return self.product(x, self.base_layer, self.quantizer, weight)

    def _inference_product(self, x: Tensor) -> Tensor | None:
        """The product by the format's own kernel or a copy of the weight, if gradients are off."""
        if torch.is_grad_enabled():
            drop_copy(self.base_layer)
            return None
        if transformed():
            return None
        fast = self.quantizer.matmul(self.base_layer, x)
        if fast is not None or self.training:
            return fast
        return copied_product(self.quantizer, self.base_layer, x)

    def product(
        self, x: Tensor, base: nn.Module, quantizer: Quantizer, weight: Tensor | None
    ) -> Tensor:
        """``x · dequantize(Q)ᵀ`` of ``base``, with the backward that its weight asks for."""
        trained = self.trained_weight(base, quantizer)
        if trained is not None:
            return F.linear(x, trained.to(x.dtype))
        return frozen_linear(x, self.frozen_weight(base, quantizer), weight)

    def frozen_weight(self, base: nn.Module, quantizer: Quantizer) -> Weight:
        """Gives the weight of ``base`` as it is now, also in a backward that finds another one."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or is_offloaded(base):
            return partial(read, quantizer.dequantize_to, base)
        seen = Seen(base, self.path, partial(quantizer.undo_repacking, base))
        return lambda dtype: read(quantizer.dequantize_to, seen.layer(base), dtype)

    def forward_weight(self, x: Tensor) -> Tensor | None:
        """The dequantized base, for variants that need more of it than its product."""
        return None

    def _with_bias(self, product: Tensor, x: Tensor) -> Tensor:
        bias = self.quantizer.bias(self.base_layer)
        y = product if bias is None else product + bias.to(product.dtype)
        dtype = working_dtype(x, x.dtype)
        return y if y.dtype == dtype else y.to(dtype)

    # -- the adapters

    def factors(self, name: str) -> tuple[nn.Linear, nn.Linear]:
        """A ``(r, in_features)`` and B ``(out_features, r)`` as linear layers."""
        return cast(nn.Linear, self.lora_A[name]), cast(nn.Linear, self.lora_B[name])

    def delta(self, name: str, x: Tensor, product: Tensor, weight: Tensor | None) -> Tensor:
        """What adapter ``name`` adds to the output: ``s · B(A(x))``.

        Args:
            x: the layer's input ``(..., in_features)``, after the adapter's dropout.
            product: input · dequantize(Q)ᵀ, before dropout and without bias.
            weight: what `forward_weight` gave.
        """
        A, B = self.factors(name)
        scale = self.scaling.operand(name) * self.input_scale(name)
        y = low_rank(x, A.weight, B.weight, scale)
        return y if B.bias is None else y + self.scaling.operand(name) * B.bias.to(y.dtype)

    def input_scale(self, name: str) -> float:
        """What A's input is to be multiplied by; variants that pool give means, not sums."""
        return 1.0

    def delta_weight(self, name: str, weight: Tensor) -> Tensor:
        """The update as a matrix ``(out_features, in_features)`` over the base ``weight``."""
        A, B = self.factors(name)
        return self.scaling[name] * (B.weight @ A.weight)

    def delta_bias(self, name: str, weight: Tensor) -> Tensor | None:
        """The update of the bias (``lora_bias``), ``(out_features,)``."""
        bias = self.factors(name)[1].bias
        return None if bias is None else self.scaling[name] * bias

    def has_bias(self, name: str) -> bool:
        return self.factors(name)[1].bias is not None

    def new_factors(
        self, config: LoraConfig, r: int, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        factory_kwargs: dict[str, Any] = {
            "device": self.quantizer.device(self.base_layer),
            "dtype": dtype,
        }
        A = nn.Linear(self.in_features, r, bias=False, **factory_kwargs)
        B = nn.Linear(r, self.out_features, bias=config.lora_bias, **factory_kwargs)
        for parameter in (*A.parameters(), *B.parameters()):
            nn.init.zeros_(parameter)
        return A, B
