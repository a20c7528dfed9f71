"""A packed module keeps codes and scales whatever dtype is asked for."""

from __future__ import annotations

import torch
from torch import nn

from quantlora import PackedModule


class Packed(PackedModule):
    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.codes = nn.Parameter(torch.arange(6, dtype=torch.uint8), requires_grad=False)
        self.scales = nn.BatchNorm1d(3)  # of buffers in a module of their own
        self.bias = nn.Parameter(torch.tensor([1 / 3]))


def test_a_change_of_dtype_is_about_float_parameters() -> None:
    module = Packed()
    scales = module.scales.running_var = torch.tensor([1 / 3])
    module.bias.grad = torch.ones(1)
    bias = module.bias
    module.to(torch.bfloat16)
    assert module.codes.dtype == torch.uint8
    assert torch.equal(module.scales.running_var, scales)
    assert module.bias is bias
    assert bias.dtype == bias.grad.dtype == module.dtype == torch.bfloat16


def test_no_conversion_of_every_tensor_touches_the_codes() -> None:
    module = Packed()
    module._apply(lambda tensor: tensor.half())
    assert module.codes.tolist() == list(range(6))
    assert module.dtype == torch.float16


def test_everything_moves() -> None:
    module = Packed().to("meta")
    assert all(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    assert module.dtype == torch.float32
