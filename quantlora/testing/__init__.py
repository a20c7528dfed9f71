"""Tests that a plugin author inherits: what quantlora promises, checked on your weight format.

    from quantlora.testing import QuantizerSuite

    class TestMyFormat(QuantizerSuite):
        quantizer = "my_format"

Needs pytest. See ``docs/testing-a-plugin.md``.
"""

import pkgutil

import pytest

# Before they are imported: so a failing assert in them shows its values.
pytest.register_assert_rewrite(
    *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
)

from quantlora.testing.initializers import InitializerSuite  # noqa: E402
from quantlora.testing.operation_suite import OperationTests  # noqa: E402
from quantlora.testing.suite import QuantizerSuite  # noqa: E402

__all__ = ["InitializerSuite", "OperationTests", "QuantizerSuite"]
