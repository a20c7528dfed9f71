"""What a format prepares for adapters is as it was before when the last one has left."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import BackendError, Quantizer, registry
from quantlora.adapters.adapter_modules import lora_layers
from tests.wrapping.test_transaction import picture


class Kept(nn.Module):
    """A packed layer: half of its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.register_buffer("halves", linear.weight.detach() / 2)
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        return x @ (2 * self.halves).t()


def unpack(model: nn.Module, args: Any) -> None:
    """What compressed-tensors' hook does at the first forward: no layer is packed after it."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Kept):
            model.set_submodule(path, nn.Linear(module.in_features, module.out_features))


class KeptFormat(Quantizer):
    """Takes the model's hook away; keeps a table of its own of what is prepared."""

    name, module = "kept", "torch"
    reason = ""

    def __init__(self) -> None:
        self.table: list[nn.Module] = []
        self.fails_at = ""

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Kept,)

    def dequantize(self, layer: nn.Module) -> Tensor:
        return 2 * layer.halves

    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        return Kept(linear)

    def prepare_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        if hasattr(model, "hook"):
            model.hook.remove()
            del model.hook
        if model not in self.table:
            self.table.append(model)

    def prepare(self, layer: nn.Module, path: str) -> None:
        layer.ready = True
        if layer not in self.table:
            self.table.append(layer)
        if path == self.fails_at:
            raise BackendError("on purpose")

    def release(self, layer: nn.Module) -> None:
        layer.ready = False
        if layer in self.table:
            self.table.remove(layer)

    def release_model(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        assert not any(layer.ready for layer in layers.values())
        self.table.remove(model)
        model.hook = model.register_forward_pre_hook(unpack)

    def not_runnable(self, layer: nn.Module) -> str:
        return self.reason


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptFormat:
    quantizer = KeptFormat()
    monkeypatch.setitem(registry().quantizers, "kept", quantizer)
    return quantizer


@pytest.fixture
def packed() -> nn.Sequential:
    """Three packed layers and the hook, of which adapters get the first two."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Kept(nn.Linear(4, 4, bias=False)) for _ in range(3)))
    model.hook = model.register_forward_pre_hook(unpack)
    return model


FIELDS: dict[str, Any] = {"target_modules": ["0", "1"], "r": 2, "init_lora_weights": False}


def wrap(model: nn.Module, name: str = "default", **fields: Any) -> nn.Module:
    return quantlora.wrap(model, adapter_name=name, **{**FIELDS, **fields})


def shown(model: nn.Module) -> Any:
    """The model without the numbers of its hooks' handles."""
    seen = {path: (kind, dict(rest)) for path, (kind, rest) in picture(model).items()}
    hooks = seen[""][1].pop("_forward_pre_hooks")
    seen[""][1].pop("hook")
    return seen, list(hooks.values())


LEAVING: dict[str, Callable[[nn.Module], object]] = {
    "unload": quantlora.unload,
    "delete, then unload": lambda model: (
        quantlora.delete_adapter(model, "default"),
        quantlora.unload(model),
    ),
}


@pytest.mark.parametrize("way", LEAVING)
def test_model_and_layers_are_as_they_were(
    way: str, packed: nn.Sequential, kept: KeptFormat
) -> None:
    before, x = shown(packed), torch.randn(3, 4)
    wrap(packed)
    assert packed[2].ready
    packed(x).sum().backward()
    LEAVING[way](packed)
    assert shown(packed) == before
    assert not kept.table


def test_the_last_adapter_that_is_deleted_releases(packed: nn.Sequential, kept: KeptFormat) -> None:
    wrap(wrap(packed), "second", target_modules=["2"])
    quantlora.delete_adapter(packed, "second")
    assert packed[2].base_layer.ready
    quantlora.delete_adapter(packed, "default")
    assert not packed[0].base_layer.ready
    assert kept.table == [packed]


def test_a_model_whose_last_adapter_is_deleted_is_not_unpacked(
    packed: nn.Sequential, kept: KeptFormat
) -> None:
    x = torch.randn(3, 4)
    wrap(packed)
    with quantlora.adapters_disabled(packed):
        base = packed(x)
    quantlora.delete_adapter(packed, "default")
    assert not hasattr(packed, "hook")
    assert torch.equal(packed(x), base)
    quantlora.unload(packed)
    assert hasattr(packed, "hook")


def test_an_adapter_after_the_last_one_prepares_again(
    packed: nn.Sequential, kept: KeptFormat
) -> None:
    quantlora.delete_adapter(wrap(packed), "default")
    wrap(packed, "later")
    assert packed[0].base_layer.ready
    assert packed in kept.table
    assert not hasattr(packed, "hook")


def test_merge_and_unload_releases_what_was_prepared(
    packed: nn.Sequential, kept: KeptFormat
) -> None:
    quantlora.merge_and_unload(wrap(packed))
    assert not kept.table
    assert not packed[2].ready


@pytest.mark.parametrize("at", ["0", "1", "2"])
def test_a_failing_wrap_releases_and_restores(
    at: str, packed: nn.Sequential, kept: KeptFormat
) -> None:
    before, kept.fails_at = picture(packed), at
    with pytest.raises(BackendError, match="on purpose"):
        wrap(packed)
    assert picture(packed) == before
    assert not kept.table


def test_a_failing_second_adapter_leaves_the_first_one_prepared(
    packed: nn.Sequential, kept: KeptFormat
) -> None:
    before, kept.fails_at = picture(wrap(packed)), "2"
    with pytest.raises(BackendError, match="on purpose"):
        wrap(packed, "second", target_modules=["2"])
    assert picture(packed) == before
    assert packed[0].base_layer in kept.table


def test_explain_and_quantize_prepare_no_model(packed: nn.Sequential, kept: KeptFormat) -> None:
    before = picture(packed)
    quantlora.explain(packed, target_modules=["0"])
    assert picture(packed) == before
    model = quantlora.quantize(packed.append(nn.Linear(4, 4)), backend="kept", target_modules=["3"])
    assert kept.table == [model[3]]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_released_too(
    copied: Callable[[Any], Any], packed: nn.Sequential, kept: KeptFormat
) -> None:
    twin = copied(wrap(packed))
    table = dict(lora_layers(twin))["0"].quantizer.table
    table.extend(layer for layer in (twin, *twin) if layer not in table)
    quantlora.unload(twin)
    assert not twin[0].ready
    assert packed[0].base_layer.ready


def test_a_loaded_adapter_prepares_too(
    packed: nn.Sequential, kept: KeptFormat, tmp_path: Path
) -> None:
    quantlora.save_adapter(wrap(packed), tmp_path)
    quantlora.unload(packed)
    quantlora.load_adapter(packed, tmp_path)
    assert packed[0].base_layer.ready
    assert not hasattr(packed, "hook")


def test_a_release_that_fails_is_told_when_all_is_done(
    packed: nn.Sequential, kept: KeptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(packed)
    monkeypatch.setattr(kept, "release_model", lambda model, layers: 1 / 0)
    with pytest.raises(BackendError, match=r"'kept' cannot take back .*ZeroDivisionError"):
        quantlora.unload(packed)
    assert not list(lora_layers(packed))
    assert not packed[0].ready


# -- layers that cannot run by themselves


@pytest.fixture
def idle(kept: KeptFormat, monkeypatch: pytest.MonkeyPatch) -> KeptFormat:
    monkeypatch.setattr(KeptFormat, "reason", "kernel k is not installed: pip install k.")
    return kept


WHY = r"0 and 1 more: a layer in format 'kept' .* kernel k is not installed: pip install k\. Remedy"


@pytest.mark.parametrize("leave", [quantlora.unload, quantlora.merge_and_unload])
def test_leaving_says_what_cannot_run(
    leave: Callable[[nn.Module], Any], packed: nn.Sequential, idle: KeptFormat
) -> None:
    model = packed[:2]
    wrap(model)
    with pytest.warns(quantlora.AdapterWarning, match=WHY):
        leave(model)


def test_a_float_merge_says_nothing(
    packed: nn.Sequential, idle: KeptFormat, recwarn: pytest.WarningsRecorder
) -> None:
    model = quantlora.merge_and_unload(wrap(packed[:2]), mode="dequantize")
    assert model(torch.randn(3, 4)).isfinite().all()
    assert not [one for one in recwarn if "cannot run" in str(one.message)]


def test_wrap_load_and_explain_name_layers_that_get_no_adapter(
    packed: nn.Sequential, idle: KeptFormat, tmp_path: Path
) -> None:
    said = r"2: a layer in format 'kept' without an adapter cannot run here"
    plan = quantlora.explain(packed, **FIELDS)
    assert any("2: a layer in format 'kept'" in text for text in plan.warnings)
    with pytest.warns(quantlora.AdapterWarning, match=said):
        wrap(packed)
    quantlora.save_adapter(packed, tmp_path)
    quantlora.unload(packed)
    with pytest.warns(quantlora.AdapterWarning, match=said):
        quantlora.load_adapter(packed, tmp_path)


def test_quantize_says_that_its_layers_need_an_adapter(idle: KeptFormat) -> None:
    with pytest.warns(quantlora.AdapterWarning, match="give each of them one"):
        quantlora.quantize(nn.Sequential(nn.Linear(4, 4)), backend="kept", target_modules=["0"])
