"""What `wrap` does to a model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import quantlora
from quantlora import LoraLinear, lora_layers


def trained(model: nn.Module) -> set[str]:
    return {name for name, one in model.named_parameters() if one.requires_grad}


def adapter_parameters(adapter: str, *paths: str) -> set[str]:
    return {f"{path}.lora_{side}.{adapter}.weight" for path in paths for side in "AB"}


TARGETS = [f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "up_proj")]
OTHERS = [f"layers.{i}.{name}" for i in (0, 1) for name in ("up_proj", "down_proj")]


def test_it_returns_the_same_object(model: nn.Module) -> None:
    assert quantlora.wrap(model, r=2, target_modules=["q_proj"]) is model


def test_it_keeps_the_layers_themselves_as_bases(model: nn.Module) -> None:
    before = dict(model.named_modules())
    quantlora.wrap(model, r=2, target_modules=["q_proj", "up_proj"])
    for path, layer in lora_layers(model):
        assert layer.base_layer is before[path]
    assert [path for path, _ in lora_layers(model)] == TARGETS


def test_only_the_adapter_is_trained(wrapped: Callable[..., nn.Module]) -> None:
    assert trained(wrapped()) == adapter_parameters("default", *TARGETS)


def test_a_fresh_adapter_changes_no_output(model: nn.Module, x: Tensor) -> None:
    before = model(x)
    quantlora.wrap(model, r=2)
    assert torch.allclose(model(x), before, rtol=1e-6)


def test_the_mode_of_every_layer_is_kept(model: nn.Module) -> None:
    model.train()
    model.layers[0].q_proj.eval()
    quantlora.wrap(model, r=2, target_modules=["q_proj"])
    assert [layer.training for _, layer in lora_layers(model)] == [False, True]


def test_a_config_object_does_what_its_fields_do(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    quantlora.wrap(model, quantlora.LoraConfig(r=3, target_modules=["q_proj"]))
    quantlora.wrap(twin, r=3, target_modules=["q_proj"])
    assert model.state_dict().keys() == twin.state_dict().keys()


# -- a second adapter


def test_the_second_adapter_is_the_one_that_counts_and_learns(
    wrapped: Callable[..., nn.Module], x: Tensor
) -> None:
    model = wrapped()
    wrapped("second", target_modules=["up_proj", "down_proj"])
    assert quantlora.active_adapters(model) == ["second"]
    assert trained(model) == adapter_parameters("second", *OTHERS)
    assert model.layers[0].q_proj.active_unmerged == ()


def test_the_first_adapter_is_unharmed_by_the_second(
    wrapped: Callable[..., nn.Module], x: Tensor
) -> None:
    model = wrapped()
    before, learning = model(x), trained(model)
    wrapped("second", target_modules=["up_proj", "down_proj"], lora_dropout=0.5)
    quantlora.set_adapter(model, "default")
    assert torch.equal(model(x), before)
    assert trained(model) == learning


def test_what_was_unfrozen_by_hand_stays_so(wrapped: Callable[..., nn.Module]) -> None:
    model = wrapped()
    model.head.requires_grad_(True)
    wrapped("second")
    assert {"head.weight", "head.bias"} <= trained(model)


@pytest.mark.parametrize("first", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("second", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_adapters_of_different_variants_share_a_layer(
    first: dict[str, bool], second: dict[str, bool], wrapped: Any, x: Tensor
) -> None:
    model = wrapped(**first)
    before = model(x)
    wrapped("second", **second)
    quantlora.set_adapter(model, "default")
    assert torch.allclose(model(x), before, atol=1e-5)


# -- modules at several places


def test_a_layer_at_two_places_is_one_lora_layer(model: nn.Module, x: Tensor) -> None:
    model.layers[1].q_proj = model.layers[0].q_proj
    quantlora.wrap(model, r=2, target_modules=["q_proj"], init_lora_weights=False)
    assert isinstance(model.layers[0].q_proj, LoraLinear)
    assert model.layers[1].q_proj is model.layers[0].q_proj
    assert model.layers[0].q_proj.adapters == ("default",)


def test_a_block_at_two_places_is_wrapped_once(model: nn.Module, x: Tensor) -> None:
    model.layers[1] = model.layers[0]
    quantlora.wrap(model, r=2, target_modules=["q_proj"])
    quantlora.wrap(model, r=2, target_modules=["q_proj"], adapter_name="second")
    assert [path for path, _ in lora_layers(model)] == ["layers.0.q_proj"]
    assert not isinstance(model.layers[1].q_proj.base_layer, LoraLinear)


def test_a_tied_weight_stays_tied(model: nn.Module) -> None:
    model.layers[1].q_proj.weight = model.layers[0].q_proj.weight
    quantlora.wrap(model, r=2, target_modules=["q_proj"])
    one, two = (layer.base_layer for _, layer in lora_layers(model))
    assert one.weight is two.weight


# -- models of other kinds


def test_gpt2s_transposed_layers_are_wrapped() -> None:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}
    model = quantlora.wrap(GPT2LMHeadModel(GPT2Config(**sizes)), r=2)
    shapes = {path: (one.out_features, one.in_features) for path, one in lora_layers(model)}
    assert shapes["transformer.h.0.attn.c_attn"] == (48, 16)
    assert shapes["transformer.h.0.mlp.c_proj"] == (16, 64)


def test_torchs_own_encoder_calls_the_lora_layers_in_eval() -> None:
    """Its fused kernel would read the weights of the base and leave the adapter out."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
    quantlora.wrap(model, r=2, init_lora_weights=False).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        fast = model(x)
    assert torch.allclose(fast, model(x), atol=1e-6)


class OwnForward(nn.Linear):
    """The plain product, written by hand, as some models have it."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + self.bias


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_subclass_that_computes_the_plain_product_is_wrapped() -> None:
    model = quantlora.wrap(nn.Sequential(OwnForward(8, 8)), r=2)
    assert isinstance(model[0], LoraLinear)


def test_a_subclass_that_computes_something_else_is_refused() -> None:
    with pytest.raises(quantlora.LayerError, match="Doubling with weight Parameter"):
        quantlora.wrap(nn.Sequential(Doubling(8, 8)), r=2, target_modules=["0"])


def test_a_model_on_the_meta_device_can_be_wrapped() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    quantlora.wrap(model, r=2)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_as_a_wrapped_model(copied: Any, wrapped: Any, x: Tensor) -> None:
    model = copied(wrapped())
    quantlora.wrap(model, r=2, target_modules=["q_proj"], adapter_name="second")
    quantlora.merge(model)
    quantlora.unmerge(model)
    assert quantlora.active_adapters(model) == ["second"]
    assert model(x).isfinite().all()


def test_training_lowers_the_loss(wrapped: Callable[..., nn.Module], x: Tensor) -> None:
    model = wrapped(init_lora_weights=True)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(20):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
