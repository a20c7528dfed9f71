"""Every operation of an adapter's life on a format, or the documented error."""

from __future__ import annotations

import pytest

from quantlora.errors import ConfigError, MergeError
from quantlora.testing import adapter_operations, merge_operations
from quantlora.testing.base import SuiteBase
from quantlora.testing.operations import OPERATIONS

#: Importing them puts their operations on the list.
CHAPTERS = (adapter_operations, merge_operations)


class OperationTests(SuiteBase):
    """When one fails, look at ``dequantize``, or at ``quantize`` where the operation packs."""

    @pytest.mark.filterwarnings("ignore:merging lost most of the update")
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_operation(self, name: str) -> None:
        one = OPERATIONS[name]
        if one.packs and not self.format.can_quantize:
            with pytest.raises(MergeError, match='mode="dequantize"'):
                one.run(self)
        elif one.varies and self.adapter:
            with pytest.raises(ConfigError):
                one.run(self)
        else:
            one.run(self)
