"""Everything that quantlora promises, on this format, and what only this format can say."""

import torch
from quantlora_absmax8.layer import Absmax8Linear

from quantlora.testing import QuantizerSuite


class TestAbsmax8(QuantizerSuite):
    quantizer = "absmax8"

    def test_a_row_errs_by_half_a_step_at_most(self) -> None:
        weight = torch.randn(8, 64)
        layer = Absmax8Linear.pack(weight, None)
        assert ((layer.weight_matrix() - weight).abs() <= layer.scale * 0.5001).all()

    def test_a_row_of_zeros_stays_zero(self) -> None:
        weight = torch.stack([torch.zeros(4), torch.ones(4)])
        layer = Absmax8Linear.pack(weight, None)
        assert torch.equal(layer.weight_matrix(), weight)
