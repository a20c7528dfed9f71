"""Several adapters on one layer: their sum, each alone, and none."""

from __future__ import annotations

import torch

from quantlora.adapters.disabling import adapters_disabled
from quantlora.adapters.switch import delete_adapter, set_adapter
from quantlora.config.lora_config import LoraConfig
from quantlora.testing.base import OneLayerModel, SuiteBase
from quantlora.wrapped_model import wrap


class AdapterTests(SuiteBase):
    """When one fails, the layer's output depends on more than its weight and bias."""

    def test_active_adapters_are_summed(self) -> None:
        model = self._two()
        set_adapter(model, ["default", "second"])
        self.check_output(model, self.input(model.lora.base_layer, 6))

    def test_each_adapter_counts_alone(self) -> None:
        model = self._two()
        for name in ("default", "second"):
            set_adapter(model, name)
            self.check_output(model, self.input(model.lora.base_layer, 6))

    def test_without_adapters_it_is_the_base(self) -> None:
        model = self._two()
        x = self.input(model.lora.base_layer, 6)
        with adapters_disabled(model):
            off = model(x)
        set_adapter(model, [])
        self.check_output(model, self.input(model.lora.base_layer, 6))
        assert torch.equal(off, model(x))

    def test_a_deleted_adapter_leaves_the_other(self) -> None:
        model = self._two()
        delete_adapter(model, "second")
        set_adapter(model, "default")
        self.check_output(model, self.input(model.lora.base_layer, 6))
        assert model.lora.adapters == ("default",)

    def _two(self) -> OneLayerModel:
        model = self.wrapped()
        config = LoraConfig(r=1, target_modules=["proj"], init_lora_weights=False)
        return wrap(model, config, adapter_name="second")
