"""What tests of layers set for themselves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import quantlora


@pytest.fixture
def products() -> Iterator[Callable[[str], str]]:
    """`quantlora.adapter_products`, back at its default afterwards."""
    yield quantlora.adapter_products
    quantlora.adapter_products("input")
