"""What is told of the processor, for all that its flags and torch's age may be."""

from __future__ import annotations

import pytest
import torch

from quantlora import multiplies_bfloat16


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_multiplied_by_avx512_or_amx(
    facts: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: facts, raising=False)
    assert multiplies_bfloat16() is expected


def test_a_torch_that_does_not_say_is_taken_at_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert multiplies_bfloat16("cpu") is False
