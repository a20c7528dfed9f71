"""What config.json has Transformers leave float is what is float, however its names match."""

from __future__ import annotations

import pytest
from quantlora_bnb.four_bit import Bitsandbytes4bit
from torch import nn

from quantlora import quantize
from tests.tools.versions import IS_TRANSFORMERS_5

pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 matches otherwise")

#: Which paths of a model are packed, and which are not.
CASES = {
    "a layer called as another ends": (["inner.proj", "inner.lm_head"], ["proj", "lm_head"]),
    "a name that another begins with": (["fc.1", "fc10"], ["fc1", "fc.10"]),
    "a head of several layers": (["lm_head.dense"], ["lm_head.decoder"]),
    "a packed head": (["lm_head"], ["layer"]),
    "no head at all": (["layer.q_proj"], ["layer.gate"]),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_packs_what_is_packed_and_nothing_else(case: str) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    packed, plain = CASES[case]
    layer = quantize(nn.Sequential(nn.Linear(64, 64)), backend="bitsandbytes_4bit")[0]
    linears = {path: nn.Linear(64, 64) for path in (*packed, *plain)}
    config = Bitsandbytes4bit().checkpoint_config(dict.fromkeys(packed, layer), linears)
    skipped = config["llm_int8_skip_modules"]
    assert [path for path in linears if should_convert_module(path, skipped)] == packed


def test_the_head_that_a_base_model_is_saved_with_later_stays_float() -> None:
    layer = quantize(nn.Sequential(nn.Linear(64, 64)), backend="bitsandbytes_4bit")[0]
    linears = {"layer.q_proj": nn.Linear(64, 64)}
    config = Bitsandbytes4bit().checkpoint_config({"layer.q_proj": layer}, linears)
    assert config["llm_int8_skip_modules"] == ["lm_head"]
