"""`InitializerSuite`: what quantlora promises of an initializer, checked on yours.

class TestMyInitializer(InitializerSuite):
    initializer = "my_initializer"
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from quantlora.adapters.adapter_modules import lora_layers
from quantlora.adapters.switch import set_adapter
from quantlora.checkpoint.save import save_adapter
from quantlora.discovery.registration import best_quantizer, registry
from quantlora.errors import BackendError, ConfigError
from quantlora.initializers.initializer import InitContext, Initializer
from quantlora.operations.reference import relative
from quantlora.wrapped_model import load_adapter, wrap
from quantlora.wrapping.quantize import quantize


class InitializerSuite:
    """Subclass it and set ``initializer``."""

    #: The initializer's name, as users type it for ``init_lora_weights=``.
    initializer: ClassVar[str]
    #: More fields of `LoraConfig`, and arguments of `wrap` (``backend``), that it needs.
    fields: ClassVar[Mapping[str, Any]] = {}
    #: ``(out_features, in_features)`` of the layers.
    shapes: ClassVar[tuple[tuple[int, int], ...]] = ((32, 32), (48, 32), (16, 48))

    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.manual_seed(0)

    @property
    def subject(self) -> Initializer:
        return registry().initializers[self.initializer]

    def model(self) -> nn.Sequential:
        generator = torch.Generator().manual_seed(0)
        layers = [nn.Linear(width, out) for out, width in self.shapes]
        for layer in layers:
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
        return nn.Sequential(*layers)

    def wrapped(self, model: nn.Module | None = None) -> nn.Module:
        fields = {"r": 4, "lora_alpha": 6, "target_modules": r"\d+", **self.fields}
        model = self.model() if model is None else model
        return wrap(model, init_lora_weights=self.initializer, **fields)

    def test_the_base_changes_only_where_that_is_declared(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watched: list[tuple[nn.Module, nn.Module, Tensor, Tensor]] = []
        initialize = type(self.subject).initialize

        def spy(subject: Initializer, layer: Any, context: InitContext) -> None:
            before, weight = layer.base_layer, layer.dequantize().clone()
            initialize(subject, layer, context)
            watched.append((before, layer.base_layer, weight, layer.dequantize()))

        monkeypatch.setattr(type(self.subject), "initialize", spy)
        declared = self.subject.changes_base
        if declared:
            self.wrapped()
        else:
            self._wrap_and_forgive()
        for before, after, was, now in watched:
            same = before is after and torch.equal(was, now)
            assert declared or same, "it changes the base: set changes_base = True on its class"

    def _wrap_and_forgive(self) -> None:
        """`wrap` itself refuses an undeclared change; the assertion after it says it better."""
        try:
            self.wrapped()
        except Exception as error:
            if "changes_base" not in str(error) and "in place" not in str(error):
                raise

    def test_no_tensor_of_the_base_is_changed_in_place(self) -> None:
        model = self.model()
        before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
        self.wrapped(model)
        for name, (parameter, was) in before.items():
            assert torch.equal(parameter.detach(), was), f"{name} has other values now"

    def test_first_values_are_finite_and_not_all_zero(self) -> None:
        for path, layer in lora_layers(self.wrapped()):
            tensors = layer.adapter_tensors("default")
            assert all(torch.isfinite(tensor).all() for tensor in tensors.values()), path
            assert any(tensor.any() for tensor in tensors.values()), path

    def test_a_saved_adapter_computes_the_same_on_its_base(self, tmp_path: Path) -> None:
        model = self.wrapped()
        bases = copy.deepcopy(model)
        x = torch.randn(5, self.shapes[0][1])
        save_adapter(model, tmp_path, convert=False)
        for path, layer in lora_layers(bases):
            bases.set_submodule(path, layer.base_layer)
        bare = nn.Sequential(*bases.children())
        assert relative(load_adapter(bare, tmp_path)(x), model(x)) < 1e-5

    def test_a_second_adapter_leaves_the_first_as_it_was(self) -> None:
        """One that changes the base is for the first adapter alone, and refused after it."""
        model, x = self.model(), torch.randn(5, self.shapes[0][1])
        fields = {"r": 4, "target_modules": r"\d+", **self.fields}
        wrap(model, adapter_name="first", **{**fields, "init_lora_weights": False})
        before = model(x)
        try:
            self._wrapped_again(model)
        except BackendError as error:
            pytest.skip(f"it does not work on this base: {error}")
        except ConfigError as error:
            if "first adapter only" not in str(error):
                raise
        set_adapter(model, "first")
        assert relative(model(x), before) < 1e-6

    @pytest.mark.filterwarnings("ignore")
    def test_a_packed_base_stays_in_its_format(self) -> None:
        """``layer.quantizer.quantize(linear, like=layer.base_layer)`` gives a base in it."""
        packed = best_quantizer(4).name
        model = quantize(self.model(), backend=packed, target_modules=r"\d+")
        try:
            self.wrapped(model)
        except BackendError as error:
            pytest.skip(f"it does not work on {packed}: {error}")
        for path, layer in lora_layers(model):
            assert layer.quantizer.name == packed, path
            assert layer.quantizer.matches(layer.base_layer), path

    def _wrapped_again(self, model: nn.Module) -> None:
        fields = {"r": 4, "target_modules": r"\d+", **self.fields}
        fields.pop("backend", None)
        wrap(model, adapter_name="second", init_lora_weights=self.initializer, **fields)

    def test_a_changed_base_is_made_up_for(self) -> None:
        for path, layer in lora_layers(self.wrapped()):
            if (change := layer.base_change) is not None:
                assert change.gap < 0.5, (
                    f"{path}: the original base is not the changed one + s · B · A"
                )
