"""``autocast_adapter_dtype``: float32 adapters, or adapters in their layers' dtype, as in PEFT."""

from __future__ import annotations

import pytest
import torch

import quantlora

FIELDS = {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}


def dtypes(model):
    return {n.split(".default")[0]: p.dtype for n, p in model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("base", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [True, False])
def test_an_adapter_has_the_dtype_it_has_in_peft(make_base, peft, base, autocast):
    ours = quantlora.wrap(make_base().to(base), **FIELDS, autocast_adapter_dtype=autocast)
    config = peft.LoraConfig(**FIELDS)
    theirs = peft.get_peft_model(make_base().to(base), config, autocast_adapter_dtype=autocast)
    want = {name.removeprefix("base_model.model."): one for name, one in dtypes(theirs).items()}
    assert dtypes(ours) == want


@pytest.mark.parametrize("through", ["function", "method"])
def test_a_loaded_adapter_can_be_in_the_layers_dtype(make_base, make_wrapped, tmp_path, through):
    quantlora.save_adapter(make_wrapped(target_modules=["q_proj"]), tmp_path)
    model = make_base().bfloat16()
    if through == "function":
        quantlora.load_adapter(model, tmp_path, autocast_adapter_dtype=False)
    else:
        quantlora.wrap(model, r=2, target_modules=["q_proj"], autocast_adapter_dtype=False)
        model.load_adapter(tmp_path, "second", autocast_adapter_dtype=False)
    assert set(dtypes(model).values()) == {torch.bfloat16}


def test_training_works_in_the_layers_dtype(make_base):
    model = quantlora.wrap(make_base().bfloat16(), **FIELDS, autocast_adapter_dtype=False)
    tokens = torch.arange(6)[None]
    model(tokens, labels=tokens).loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_B" in n or "embedding_A" in n]
    assert all(grad.dtype == torch.bfloat16 and grad.abs().max() > 0 for grad in grads)


def test_an_adapter_on_a_packed_layer_stays_in_float32(make_base):
    model = make_base().bfloat16()
    fields = {"r": 4, "target_modules": ["q_proj"], "autocast_adapter_dtype": False}
    quantlora.wrap(model, backend="normalfloat", **fields)
    assert set(dtypes(model).values()) == {torch.float32}
