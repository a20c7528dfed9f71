"""Tests that need a version of a library, in environments that have an older one."""

from __future__ import annotations

import pytest
import transformers

IS_TRANSFORMERS_5 = int(transformers.__version__.partition(".")[0]) >= 5

transformers_5 = pytest.mark.skipif(
    not IS_TRANSFORMERS_5, reason="Transformers 4 has these models in another form"
)
