"""Which backend is taken where none is named: by what they offer, not by their names."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from quantlora.discovery.registration import _best, best_quantizer, registry
from quantlora.errors import BackendError
from quantlora.formats.quantizer import Quantizer
from quantlora.requirements import Requirement


class _Reader(Quantizer):
    module: ClassVar[str] = "torch"

    def __init__(self, name: str, bits: tuple[int, ...], preference: int = 0, **kind: Any) -> None:
        self.name, self.bits, self.preference = name, bits, preference  # type: ignore[misc]
        self.requires = kind.get("requires", ())

    def layer_types(self):
        return ()

    def dequantize(self, layer):
        raise NotImplementedError


class _Packer(_Reader):
    def quantize(self, linear, like=None, **options):
        raise NotImplementedError


MISSING = (Requirement("no-such-library", "pip install no-such-library"),)


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([_Packer("a", (4,)), _Packer("b", (4,), 5)], "b"),
        ([_Packer("b", (4,)), _Packer("a", (4,))], "a"),
        ([_Packer("a", (8,), 9), _Packer("b", (2, 4))], "b"),
        ([_Reader("a", (4,), 9), _Packer("b", (4,))], "b"),
        ([_Packer("a", (4,), 9, requires=MISSING), _Packer("b", (4,))], "b"),
    ],
)
def test_the_preferred_one_of_those_that_can_is_taken(offers, chosen):
    assert _best(offers, (4,)).name == chosen


def test_where_none_is_installed_the_pip_lines_are_given():
    with pytest.raises(BackendError, match=r"a: no-such-library is not installed\.\npip install"):
        _best([_Packer("a", (4,), requires=MISSING)], (4,))


def test_where_none_offers_the_bits_the_others_are_listed():
    with pytest.raises(BackendError, match="quantizes to 5 bits; offered: 2, 4, 8"):
        _best([_Packer("a", (4, 8)), _Packer("b", (2,))], (5,))


def test_one_that_packs_to_each_of_several_widths_is_taken():
    offers = [_Packer("a", (4,), 9), _Packer("b", (2, 4))]
    assert _best(offers, (2, 4)).name == "b"


@pytest.mark.parametrize("bits", [(4,), (8,), (2, 4)])
def test_of_what_is_installed_one_that_packs_to_these_bits_is_taken(bits):
    found = best_quantizer(*bits)
    assert found is registry().quantizers[found.name]
    assert set(bits) <= set(found.bits)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("QLoRA", "bitsandbytes_4bit"), ("int8", "bitsandbytes_8bit"), ("autoawq", "awq")],
)
def test_a_format_by_another_name_is_answered_by_ours(typed: str, meant: str) -> None:
    with pytest.raises(BackendError, match=f"Did you mean {meant!r}"):
        registry().quantizer(typed)


def test_no_two_formats_go_by_one_name() -> None:
    names = [n for q in registry().quantizers.values() for n in (q.name, *q.also_called)]
    assert len(set(names)) == len(names)
