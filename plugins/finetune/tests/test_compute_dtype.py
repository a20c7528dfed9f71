"""``--dtype auto`` with the processor's flag forced both ways."""

from __future__ import annotations

import pytest
import torch
from quantlora_finetune.model import compute_dtype as module
from quantlora_finetune.options.choices import Dtype


@pytest.mark.parametrize("flag", [False, True])
def test_auto_is_bfloat16_only_where_it_is_multiplied(
    flag: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: flag)
    assert module.compute_dtype(Dtype.AUTO) == (torch.bfloat16 if flag else torch.float32)
    assert module.compute_dtype(Dtype.FLOAT16) == torch.float16
