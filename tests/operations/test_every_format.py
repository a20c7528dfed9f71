"""Every operation of an adapter's life, over every format this machine can pack.

Tolerances are the suite's: 1e-5 relative in float32, more where the format computes in half
precision. Formats that only read go through the same list in their plugin's tests.
"""

from __future__ import annotations

import pytest

from quantlora import registry
from quantlora.testing.operation_suite import OperationTests

pytestmark = pytest.mark.slow  # each format's own suite has the same list in its usual form

for _quantizer in registry().quantizers.values():
    if _quantizer.can_quantize:
        _name = f"Test_{_quantizer.name}"
        globals()[_name] = type(_name, (OperationTests,), {"quantizer": _quantizer.name})
