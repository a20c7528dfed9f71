"""`wrap` is all or nothing: whatever fails, wherever, the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora import InitContext, Initializer, LoraLayer, registry
from quantlora.wrapping.transaction import Transaction

#: What may go wrong, at the last layer unless a test says otherwise.
ERRORS = [ValueError, MemoryError, KeyboardInterrupt, SystemExit]
LAST = "layers.1.up_proj"


def picture(model: nn.Module) -> dict[str, Any]:
    """Everything that can be seen of a model, by path: identities, flags, attributes, hooks."""
    return {
        path: (id(module), {name: seen(value) for name, value in vars(module).items()})
        for path, module in model.named_modules()
    }


def seen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: seen(one) for key, one in value.items()}
    if isinstance(value, list):
        return [seen(one) for one in value]
    if isinstance(value, nn.Parameter):
        return id(value), value.requires_grad
    return value if isinstance(value, (str, int, float, tuple, type(None))) else id(value)


class Failing(Initializer):
    """Raises at one layer, once it has changed what an initializer may change."""

    name = "failing"

    def __init__(self, path: str, error: type[BaseException], changes_base: bool) -> None:
        self.path, self.error, self.changes_base = path, error, changes_base

    def initialize(self, layer: LoraLayer, context: InitContext) -> None:
        if self.changes_base:
            layer.base_layer = nn.Linear(layer.in_features, layer.out_features)
        nn.init.ones_(layer.lora_A[context.adapter].weight)
        if context.path == self.path:
            raise self.error("on purpose")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def at(
        path: str = LAST, error: type[BaseException] = ValueError, changes_base: bool = True
    ) -> None:
        starting = Failing(path, error, changes_base)
        monkeypatch.setitem(registry().initializers, "failing", starting)

    return at


def check(model: nn.Module, x: Tensor, error: type[BaseException], **fields: Any) -> None:
    """`wrap` fails, and nothing is different from before."""
    before, output = picture(model), model(x)
    targets = {"r": 2, "target_modules": ["q_proj", "up_proj"]}
    with pytest.raises(error):
        quantlora.wrap(model, **{**targets, **fields})
    assert picture(model) == before
    assert torch.equal(model(x), output)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("path", ["layers.0.q_proj", LAST])
def test_a_failing_initializer_leaves_a_plain_model_as_it_was(
    path: str, error: type[BaseException], model: nn.Module, x: Tensor, failing: Callable[..., None]
) -> None:
    model.layers[0].norm.requires_grad_(False)
    failing(path, error)
    check(model, x, error, init_lora_weights="failing")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], "all-linear"], ids=str)
def test_a_failing_second_adapter_leaves_the_first_as_it_was(
    targets: Any, error: type[BaseException], wrapped: Any, x: Tensor, failing: Any
) -> None:
    """On layers that have the first adapter, and on layers that have none yet."""
    failing(LAST, error, changes_base=False)
    fields = {"init_lora_weights": "failing", "adapter_name": "second", "target_modules": targets}
    check(wrapped(), x, error, **fields)


def test_a_variant_that_replaces_lora_layers_is_undone(
    wrapped: Any, x: Tensor, failing: Any
) -> None:
    failing(changes_base=False)
    fields = {"init_lora_weights": "failing", "adapter_name": "second", "use_dora": True}
    check(wrapped(), x, ValueError, **fields)


def test_a_failure_after_the_last_layer_is_undone(
    wrapped: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new adapter is the active one by then, on every layer."""
    model = wrapped()

    def fail(model: nn.Module) -> None:
        model.left_behind = True
        raise MemoryError

    monkeypatch.setattr("quantlora.wrapped_model.attach", fail)
    check(model, x, MemoryError, adapter_name="second", target_modules=["down_proj"])


@pytest.mark.parametrize("method", ["prepare", "check_model", "device"])
def test_a_failing_quantizer_leaves_the_model_as_it_was(
    method: str, model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(registry().quantizers["float"], method, fail)
    check(model, x, RuntimeError)


def test_a_layer_that_cannot_be_wrapped_leaves_the_model_as_it_was(
    model: nn.Module, x: Tensor
) -> None:
    check(model, x, quantlora.LayerError, target_modules=["q_proj", "norm"])


def test_shared_layers_are_put_back_at_both_places(
    model: nn.Module, x: Tensor, failing: Callable[..., None]
) -> None:
    model.layers[1].q_proj = model.layers[0].q_proj
    failing()
    check(model, x, ValueError, init_lora_weights="failing")


def change(model: nn.Module) -> None:
    """One change of every kind."""
    model.layers[0].q_proj = nn.Identity()
    model.layers[1].new = nn.Parameter(torch.zeros(1))
    model.layers[1].norm.register_buffer("extra", torch.zeros(1))
    model.head.register_forward_hook(print)
    model.requires_grad_(False)
    model.note = "changed"
    del model.layers[1].up_proj


def change_and_fail(model: nn.Module) -> None:
    with Transaction(model):
        change(model)
        raise KeyboardInterrupt


def test_a_transaction_takes_back_every_kind_of_change(model: nn.Module) -> None:
    before = picture(model)
    with pytest.raises(KeyboardInterrupt):
        change_and_fail(model)
    assert picture(model) == before


def test_a_transaction_that_succeeds_keeps_the_changes(model: nn.Module) -> None:
    with Transaction(model):
        change(model)
    assert model.note == "changed"
    assert isinstance(model.layers[0].q_proj, nn.Identity)


def test_containers_that_others_hold_stay_the_same_objects(model: nn.Module) -> None:
    """A handle of a hook removes it from the dict it knows."""
    handle = model.head.register_forward_hook(lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        change_and_fail(model)
    handle.remove()
    assert not model.head._forward_hooks
