"""``quantize_options``: a setting that a format does not take is one error, for every format."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import quantlora
from quantlora import BackendError, registry

PACKING = [
    one.name
    for one in registry().quantizers.values()
    if one.bits and one.can_quantize and all(need.check() for need in one.requires)
]


def wrap(backend: str, **options: Any) -> None:
    quantlora.registry().quantizer(backend)
    model = nn.Sequential(nn.Linear(64, 64))
    quantlora.wrap(model, target_modules=["0"], backend=backend, quantize_options=options)


@pytest.mark.parametrize("backend", PACKING)
def test_a_mistyped_option_is_refused_with_the_right_ones(backend):
    with pytest.raises(BackendError, match="has no option 'grupo'; its options are"):
        wrap(backend, grupo=1)


@pytest.mark.parametrize("backend", PACKING)
def test_bits_that_a_format_does_not_have_are_refused(backend):
    with pytest.raises(BackendError, match=r"Only support .* bits quantization, got bits=7"):
        wrap(backend, bits=7)


def test_the_one_width_of_a_format_may_be_named():
    wrap("bitsandbytes_4bit", bits=4)
