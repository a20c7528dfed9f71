"""The levels agree with those of the papers and of bitsandbytes."""

import pytest
import torch
from quantlora_normalfloat import level_table
from quantlora_normalfloat.requires import SCIPY
from quantlora_normalfloat.tables import BITS, _normal_levels

from quantlora import MissingLibraryError
from quantlora.requirements import Availability, Requirement


@pytest.mark.parametrize("bits", BITS)
def test_levels_ascend_from_minus_one_to_one_with_an_exact_zero(bits):
    levels = level_table(bits)
    assert levels.numel() == 2**bits
    assert (levels.diff() > 0).all()
    assert (levels[0], levels[2 ** (bits - 1) - 1], levels[-1]) == (-1, 0, 1)


def test_four_bit_levels_agree_with_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.get_4bit_type("nf4", device="cpu")
    assert (level_table(4) - theirs).abs().max() < 2e-7


def test_two_bit_levels_agree_with_the_paper():
    # LoftQ, arXiv:2310.08659: half of the quantile range on the side that has one level more.
    normal = torch.distributions.Normal(0.0, 1.0)
    outer, middle = normal.icdf(
        torch.tensor([0.9677083, (0.9677083 + 0.5) / 2], dtype=torch.double)
    )
    torch.testing.assert_close(level_table(2), torch.tensor([-1, 0, float(middle / outer), 1]))


def test_two_bit_levels_are_among_the_four_bit_ones():
    assert torch.isin(level_table(2), level_table(4)).all()


def test_missing_scipy_is_named_in_the_known_words(monkeypatch):
    absent = Availability("scipy", False, None, SCIPY.missing, SCIPY.fix)
    monkeypatch.setattr(Requirement, "check", lambda self: absent)
    _normal_levels.cache_clear()
    with pytest.raises(MissingLibraryError) as caught:
        level_table(4)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "The required package 'scipy' is not installed. Please install it to continue."
    )
    assert lines[1].startswith("pip install")
