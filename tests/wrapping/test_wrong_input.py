"""Wrong input to `wrap`: each error says what is wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import Quantizer, Requirement, registry
from quantlora.discovery.entry_points import PluginRecord
from quantlora.discovery.offers import QUANTIZERS, Offer


def error(kind: type[Exception], model: nn.Module, *args: Any, **fields: Any) -> str:
    """The text of the error that `wrap` raises."""
    with pytest.raises(kind) as caught:
        quantlora.wrap(model, *args, **fields)
    return str(caught.value)


class Packed(nn.Linear):
    """A packed layer that no plugin knows: its weight is no float matrix."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        del self.weight
        self.register_buffer("weight", torch.zeros(out_features, in_features // 2).byte())

    def forward(self, x: Tensor) -> Tensor:
        return x


class ReadOnly(Quantizer):
    """A format that needs a library nobody has."""

    name = "read_only"
    module = "torch"
    requires = ()

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return ()

    def dequantize(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError


class Missing(ReadOnly):
    name = "missing"
    requires = (Requirement("no-such-library>=2.1"),)


def test_a_target_that_matches_nothing_names_what_is_near(model: nn.Module) -> None:
    text = error(quantlora.TargetError, model, target_modules=["qproj"])
    assert "target_modules=['qproj']" in text
    assert "matches no layer of this model" in text
    assert "Near names: q_proj" in text
    assert "Its linear layers are named: q_proj, up_proj, down_proj, head" in text
    assert 'target_modules="all-linear"' in text


def test_targets_that_are_all_excluded_say_so(model: nn.Module) -> None:
    text = error(
        quantlora.TargetError, model, target_modules=["q_proj"], exclude_modules=["q_proj"]
    )
    assert "exclude_modules=['q_proj']) matches no layer" in text


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_names_what_is_near(name: str, model: nn.Module) -> None:
    fields = {"target_modules": ["q_proj"], name: {"layers.0.qproj": 2}}
    text = error(quantlora.TargetError, model, **fields)
    assert f"{name} 'layers.0.qproj' matches none of the targeted layers" in text
    assert "Near names: layers.0.q_proj" in text


def test_a_rank_larger_than_the_weight_it_is_taken_from_names_the_layer(model: nn.Module) -> None:
    fields = {"r": 9, "target_modules": ["up_proj"], "init_lora_weights": "pissa"}
    text = error(quantlora.ConfigError, model, **fields)
    assert "layers.0.up_proj: rank 9 is larger than the layer (16 x 8), and 'pissa'" in text
    assert "rank_pattern" in text


def test_rank_0_is_refused(model: nn.Module) -> None:
    assert error(quantlora.ConfigError, model, r=0) == "r must be a positive integer, got 0."


def test_an_unknown_backend_lists_the_known_ones(model: nn.Module) -> None:
    text = error(quantlora.BackendError, model, backend="flaot")
    assert "unknown backend 'flaot'. Did you mean 'float'?" in text
    assert "auto" in text.split("Known:")[1]
    assert all(name in text.split("Known:")[1] for name in registry().quantizers)


def test_a_backend_whose_library_is_missing_gives_the_pip_line(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry().quantizers, "missing", Missing())
    text = error(quantlora.MissingLibraryError, model, backend="missing")
    assert "no-such-library is not installed." in text
    assert 'pip install "no-such-library>=2.1"' in text
    with pytest.raises(ImportError):
        quantlora.wrap(model, backend="missing")


def test_a_backend_that_only_reads_cannot_take_float_layers(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry().quantizers, "read_only", ReadOnly())
    text = error(quantlora.BackendError, model, r=2, backend="read_only")
    assert "layers.0.q_proj: backend='read_only' was asked for" in text
    assert "it cannot quantize" in text
    assert 'Use backend="auto"' in text


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear"], ids=str)
def test_a_layer_that_no_backend_knows_is_named(targets: Any, model: nn.Module) -> None:
    """Also under all-linear: a packed layer is never left out silently, nor taken for float."""
    model.layers[1].q_proj = Packed(8, 8)
    text = error(quantlora.LayerError, model, r=2, target_modules=targets)
    assert text.startswith("layers.1.q_proj: no quantizer takes this layer")
    assert "Packed with weight Tensor torch.uint8" in text
    assert "Tried: float" in text
    assert "exclude_modules" in text


def test_a_layer_without_any_weight_harms_no_quantizer(model: nn.Module) -> None:
    model.layers[1].q_proj = Packed(8, 8)
    del model.layers[1].q_proj.weight
    error(quantlora.LayerError, model, r=2, target_modules=["q_proj"])
    assert "float" in registry().quantizers


def test_a_module_that_is_not_linear_is_named(model: nn.Module) -> None:
    text = error(quantlora.LayerError, model, target_modules=["norm"])
    assert text.startswith("layers.0.norm: no quantizer takes this layer, torch.nn")


def test_a_layer_that_two_backends_claim_names_both(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Greedy(ReadOnly):
        name = "greedy"

        def matches(self, layer: nn.Module) -> bool:
            return isinstance(layer, nn.Linear)

    record = PluginRecord("other", "other-plugin", "1.0", "other")
    offer = Offer(record, QUANTIZERS, "greedy", Greedy())
    monkeypatch.setattr(registry(), "offers", [*registry().offers, offer])
    monkeypatch.setitem(registry().quantizers, "greedy", offer.item)
    text = error(quantlora.LayerError, model, r=2)
    assert "layers.0.q_proj" in text
    assert "is claimed by 'float' (plugin 'builtin') and 'greedy' (plugin 'other')" in text
    assert "set QUANTLORA_DISABLE=other" in text


def test_wrapping_twice_under_one_name_says_how_to_go_on(wrapped: Callable[..., Any]) -> None:
    text = error(quantlora.AdapterError, wrapped(), r=2, target_modules=["q_proj"])
    assert "adapter 'default' exists already. Give the new one another name" in text
    assert "quantlora.delete_adapter(model, 'default')" in text


def test_one_name_for_adapters_on_different_layers_is_refused(wrapped: Any) -> None:
    """The second call would silently replace the first one's config."""
    text = error(quantlora.AdapterError, wrapped(), r=2, target_modules=["down_proj"])
    assert "adapter 'default' exists already" in text


def test_wrapping_a_merged_model_says_to_unmerge_first(wrapped: Callable[..., Any]) -> None:
    model = wrapped()
    quantlora.merge(model)
    text = error(quantlora.AdapterError, model, r=2, adapter_name="b", target_modules=["q_proj"])
    assert "layers.0.q_proj: default is merged into the base" in text
    assert "quantlora.unmerge(model)" in text


@pytest.mark.parametrize(
    "name", ["", "a.b", "../a", "/a", "a/", "a//b", "a\\b", "c:a", " a", "a\n", None, 3]
)
def test_a_name_that_no_path_can_hold_is_refused(name: Any, model: nn.Module) -> None:
    text = error(quantlora.ConfigError, model, r=2, adapter_name=name)
    assert text.startswith(f"adapter_name {name!r}: it becomes a folder's name")


@pytest.mark.parametrize("name", ["train", "keys", "type", "training", "__base__"])
def test_a_name_that_torch_uses_is_refused(name: str, model: nn.Module) -> None:
    text = error(quantlora.ConfigError, model, r=2, adapter_name=name)
    assert text == f"adapter_name {name!r} is taken by torch or quantlora: use another."


def test_an_unknown_field_names_what_is_near(model: nn.Module) -> None:
    text = error(quantlora.ConfigError, model, rank=8)
    assert "unknown LoraConfig field 'rank'." in text
    assert "rank_pattern" in text


def test_a_config_and_fields_together_are_refused(model: nn.Module) -> None:
    text = error(quantlora.ConfigError, model, quantlora.LoraConfig(), r=8)
    assert text == "give either a config or its fields, not both: r."


def test_what_is_no_config_is_refused_by_its_name(model: nn.Module) -> None:
    text = error(quantlora.ConfigError, model, nn.Linear(2, 2))
    assert "config is torch.nn.modules.linear.Linear, neither quantlora.LoraConfig nor" in text


def test_an_unknown_initializer_lists_the_known_ones(model: nn.Module) -> None:
    text = error(quantlora.ConfigError, model, init_lora_weights="gausian")
    assert "unknown initializer 'gausian'. Did you mean 'gaussian'?" in text


def test_an_unknown_adapter_names_what_is_near(wrapped: Callable[..., Any]) -> None:
    with pytest.raises(quantlora.AdapterError, match=r"'defualt'\. Did you mean 'default'\?"):
        quantlora.set_adapter(wrapped(), "defualt")


def test_a_model_without_adapters_says_to_wrap_it(model: nn.Module) -> None:
    with pytest.raises(quantlora.AdapterError, match=r"this Model has no adapters: call quantlora"):
        quantlora.set_adapter(model, "default")


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit", "gptq"])
@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_a_layer_without_inputs_or_outputs_is_named(shape: tuple[int, int], backend: str) -> None:
    model = nn.Sequential(nn.Linear(*shape))
    text = error(quantlora.LayerError, model, backend=backend)
    assert text.startswith(f"0: the layer has {shape[0]} inputs and {shape[1]} outputs")


@pytest.mark.filterwarnings("ignore")  # of zero-element tensors, and ranks above the layer's
@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_a_float_layer_without_inputs_or_outputs_trains_and_merges(shape: tuple[int, int]) -> None:
    model = quantlora.wrap(nn.Sequential(nn.Linear(*shape)), r=2, init_lora_weights=False)
    x = torch.randn(3, shape[0], requires_grad=True)
    wanted = model[0].base_layer(x)
    assert torch.equal(model(x), wanted)
    model(x).sum().backward()
    quantlora.merge(model)
    assert torch.equal(model(x), wanted)
