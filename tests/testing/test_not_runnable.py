"""The suite holds a format whose layers cannot run here to the rest, and never runs them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantlora import registry
from quantlora.testing import QuantizerSuite
from tests.testing.test_suite_catches import Codes, Sound


class Mute(Codes):
    """Codes whose kernel is not here."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel")


class MuteFormat(Sound):
    name = "mute"

    def layer_types(self) -> tuple[type[nn.Module], ...]:
        return (Mute,)

    def quantize(self, linear: nn.Linear, like: Any = None, **options: Any) -> nn.Module:
        sound: Any = super().quantize(linear)
        return Mute(sound.codes, sound.scale, sound.bias)

    def not_runnable(self, layer: nn.Module) -> str:
        return "its kernel needs a GPU."


class Silent(MuteFormat):
    """Does not say so."""

    def not_runnable(self, layer: nn.Module) -> str:
        return ""


class MuteSuite(QuantizerSuite):
    quantizer = "mute"

    @pytest.fixture(autouse=True)
    def _ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(registry().quantizers, "mute", MuteFormat())
        torch.manual_seed(0)


@pytest.mark.slow
class TestMute(MuteSuite):
    pass


@pytest.mark.filterwarnings("ignore")
def test_no_merge_test_runs_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry().quantizers, "mute", MuteFormat())
    MuteSuite().test_merge_and_unload_leaves_a_plain_layer()
    MuteSuite().test_unload_says_what_cannot_run()


@pytest.mark.filterwarnings("ignore")
def test_a_format_that_does_not_say_so_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry().quantizers, "mute", Silent())
    with pytest.raises(RuntimeError, match="no kernel"):
        MuteSuite().test_merge_and_unload_leaves_a_plain_layer()
