"""The layer: what a library for quantized models would bring along."""

import torch
from torch import Tensor, nn


class Absmax8Linear(nn.Module):
    """``weight = codes · scale``: int8 codes (out, in), one scale for each row (out, 1)."""

    def __init__(self, codes: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None) -> "Absmax8Linear":
        """The nearest codes; a row of zeros has the smallest scale there is."""
        largest = weight.abs().amax(dim=1, keepdim=True).float()
        scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (weight.float() / scale).round().clamp(-127, 127).to(torch.int8)
        return cls(codes, scale, bias)

    def weight_matrix(self) -> Tensor:
        return self.codes * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight_matrix().to(x.dtype), self.bias)
