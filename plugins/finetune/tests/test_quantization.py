"""Which format a run packs to, by its options."""

from __future__ import annotations

import pytest
from quantlora_finetune.model.quantization import choose_format
from quantlora_finetune.options.finetune_options import FinetuneOptions

from quantlora.discovery.registration import registry
from quantlora.errors import BackendError


@pytest.mark.parametrize("bits", [4, 8])
def test_the_default_is_a_real_backend_of_that_many_bits(bits):
    form = choose_format(FinetuneOptions(bits=bits), is_quantized=False)
    assert bits in registry().quantizers[form.backend].bits


def test_a_quantized_model_is_taken_as_it_is():
    assert choose_format(FinetuneOptions(), is_quantized=True).backend == "auto"


def test_sixteen_bits_are_no_packing():
    for backend in (None, "float"):
        form = choose_format(FinetuneOptions(bits=16, backend=backend), is_quantized=False)
        assert (form.backend, form.options) == ("float", {})


def test_bits_for_a_model_that_is_packed_are_refused():
    with pytest.raises(BackendError, match="quantized already and is taken as it is"):
        choose_format(FinetuneOptions(bits=8), is_quantized=True)


def test_bits_are_passed_on_where_there_is_a_choice():
    several = [q for q in registry().quantizers.values() if q.can_quantize and len(q.bits) > 1]
    for quantizer in several:
        if not quantizer.availability_error():
            bits = quantizer.bits[0]
            form = choose_format(FinetuneOptions(backend=quantizer.name, bits=bits), False)
            assert form.options == {"bits": bits}
