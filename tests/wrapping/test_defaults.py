"""`wrap(model)` on families with layers narrower than its default rank, or with no plain ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import quantlora
from quantlora.errors import AdapterWarning
from quantlora.layers.layer import LoraLayer
from tests.compatibility.tiny_config import tiny_config
from tests.tools.peft_oracle import relative
from tests.tools.versions import transformers_5

#: Each has a layer with one or two outputs, and the default rank is 8.
NARROW = {
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", "shared_expert_gate"),
    "Qwen3NextForCausalLM": ("Qwen3NextConfig", "shared_expert_gate"),
    "RobertaForSequenceClassification": ("RobertaConfig", "classifier.out_proj"),
}
IDS = torch.tensor([[5, 3, 7, 9]])


def made(name: str, config: str) -> Any:
    torch.manual_seed(0)
    fields = tiny_config(getattr(transformers, config))
    kind = getattr(transformers, name)
    return kind._from_config(fields, experts_implementation="eager").double().eval()


def logits(model: Any) -> torch.Tensor:
    more = {"use_cache": False} if "CausalLM" in type(model).__name__ else {}
    return model(input_ids=IDS, **more).logits.detach()


@transformers_5
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NARROW)
def test_a_layer_narrower_than_the_default_rank_is_adapted(name: str, tmp_path: Path) -> None:
    config, layer = NARROW[name]
    model = made(name, config)
    plain = copy.deepcopy(model)
    targets = {} if "CausalLM" in name else {"target_modules": ["query", layer]}
    with pytest.warns(AdapterWarning, match=rf"{layer}.*the rank is larger than the layer"):
        quantlora.wrap(model, init_lora_weights=False, **targets)
    wanted = logits(model)
    assert relative(logits(plain), wanted) > 1e-3
    quantlora.save_adapter(model, tmp_path)
    assert torch.equal(logits(quantlora.load_adapter(plain, tmp_path)), wanted)
    quantlora.merge_and_unload(model)
    assert relative(logits(model), wanted) <= 1e-9


@transformers_5
def test_the_router_of_llama_4_gets_no_adapter_and_is_named() -> None:
    model = made("Llama4ForCausalLM", "Llama4TextConfig")
    router = next(path for path, _ in model.named_modules() if path.endswith(".router"))
    with pytest.warns(AdapterWarning, match=rf"leaves out {router}.*more than the product"):
        quantlora.wrap(model)
    assert not isinstance(model.get_submodule(router), LoraLayer)
    assert any(isinstance(module, LoraLayer) for module in model.modules())
