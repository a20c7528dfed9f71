"""DoRA on embeddings and convolutions: PEFT's numbers and files, merged like any layer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import ConfigError
from tests.tools.peft_oracle import relative

FIELDS: dict[str, Any] = {"target_modules": ["0"], "r": 2, "lora_alpha": 3, "use_dora": True}
IDS = torch.tensor([[1, 2, 3], [7, 0, 2], [3, 3, 8]])

torch.manual_seed(0)
KINDS: dict[str, tuple[nn.Sequential, Tensor]] = {
    "1d": (nn.Sequential(nn.Conv1d(4, 6, 3, padding=1)), torch.randn(3, 4, 9)),
    "2d": (nn.Sequential(nn.Conv2d(4, 6, (3, 2), stride=2)), torch.randn(3, 4, 8, 8)),
    "3d": (nn.Sequential(nn.Conv3d(4, 6, 3, bias=False)), torch.randn(3, 4, 5, 5, 5)),
    "embedding": (nn.Sequential(nn.Embedding(9, 6, padding_idx=0)), IDS),
}


def peft_model(kind: str, **fields: Any) -> tuple[Any, Tensor]:
    base, x = KINDS[kind]
    torch.manual_seed(1)
    config = peft.LoraConfig(**{**FIELDS, "init_lora_weights": False, **fields})
    model = peft.get_peft_model(copy.deepcopy(base), config)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
    return model, x


def ours(kind: str, **fields: Any) -> tuple[nn.Sequential, Tensor]:
    base, x = KINDS[kind]
    torch.manual_seed(2)
    model = quantlora.wrap(copy.deepcopy(base), **{**FIELDS, "init_lora_weights": False, **fields})
    with torch.no_grad():
        model[0].adapter_tensors("default")["lora_magnitude_vector"].mul_(1.25)
    return model, x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_and_gradients_are_those_of_peft(kind: str, dropout: float, tmp_path: Path) -> None:
    theirs, x = peft_model(kind, lora_dropout=dropout)
    theirs.save_pretrained(str(tmp_path))
    mine = quantlora.load_adapter(copy.deepcopy(KINDS[kind][0]), tmp_path, is_trainable=True)
    outputs = []
    for model in (theirs.train(), mine.train()):
        torch.manual_seed(3)
        outputs.append(model(x))
        outputs[-1].square().sum().backward()
    assert relative(outputs[1].detach(), outputs[0].detach()) <= 1e-5
    found = mine[0].adapter_tensors("default")
    layer = theirs.base_model.model[0]
    sides = (layer.lora_embedding_A, layer.lora_embedding_B) if kind == "embedding" else ()
    wanted = [one["default"] for one in sides or (layer.lora_A, layer.lora_B)]
    wanted = [*wanted, layer.lora_magnitude_vector["default"]]
    for one, twin in zip(found.values(), wanted, strict=True):
        grad = getattr(twin, "weight", twin).grad
        assert one.shape == grad.shape
        assert relative(one.grad, grad) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_our_file(kind: str, tmp_path: Path) -> None:
    model, x = ours(kind)
    quantlora.save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(KINDS[kind][0]), str(tmp_path))
    assert relative(model(x), theirs(x)) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_gives_the_same_output_and_is_undone(kind: str) -> None:
    model, x = ours(kind)
    quantlora.wrap(model, adapter_name="plain", **{**FIELDS, "use_dora": False})
    nn.init.normal_(list(model[0].adapter_tensors("plain").values())[1])
    quantlora.set_adapter(model, ["default", "plain"])
    before = model(x).detach()
    quantlora.merge(model, "plain")
    assert relative(model(x).detach(), before) <= 1e-5
    quantlora.merge(model)
    assert relative(model(x), before) <= 1e-5
    quantlora.unmerge(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_the_base_and_takes_mixed_batches(kind: str) -> None:
    base, x = KINDS[kind]
    model = quantlora.wrap(copy.deepcopy(base), **FIELDS)
    assert relative(model(x), base(x)) <= 1e-6
    model, x = ours(kind)
    wanted = torch.cat([model(x)[:1], base(x)[1:2], model(x)[2:]])
    with quantlora.mixed_batch(model, ["default", "__base__", "default"]):
        assert relative(model(x), wanted) <= 1e-6


def test_a_grouped_convolution_is_refused() -> None:
    with pytest.raises(ConfigError, match="groups=2 has no such sum"):
        quantlora.wrap(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)), **FIELDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_adapter_joins_a_plain_one(kind: str) -> None:
    base, x = KINDS[kind]
    model = quantlora.wrap(copy.deepcopy(base), **{**FIELDS, "use_dora": False})
    quantlora.wrap(model, adapter_name="second", **FIELDS)
    assert type(model[0]).__name__.startswith("Dora")
    assert relative(model(x), base(x)) <= 1e-6
