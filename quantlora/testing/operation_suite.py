"""Every operation of an adapter's life on a format, or the documented error."""

from __future__ import annotations

import pytest
import torch

from quantlora.operations.catalogue import OPERATIONS
from quantlora.testing.base import SuiteBase


class OperationTests(SuiteBase):
    """When one fails, look at ``dequantize``, or at ``quantize`` where the operation packs."""

    @pytest.mark.filterwarnings("ignore:merging lost most of the update")
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_operation(self, name: str, dtype: torch.dtype) -> None:
        OPERATIONS[name].check(self.trial(dtype))
