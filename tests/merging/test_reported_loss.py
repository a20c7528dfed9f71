"""What is reported is what the output shows."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import quantlora
from quantlora.errors import MergeError
from tests.tools.peft_oracle import relative


def standardized(kind: Any) -> Any:
    class Standardized(kind):  # BiT, ResNetV2
        def forward(self, x: Tensor) -> Tensor:
            w, dims = self.weight, tuple(range(1, self.weight.dim()))
            w = (w - w.mean(dims, True)) / (w.std(dims, keepdim=True) + 1e-5)
            return self._conv_forward(x, w, self.bias)

    return Standardized


class Halved(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Clamped(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-0.1, 0.1)


def conv(kind: Any = nn.Conv1d, **fields: Any) -> Any:
    return lambda: kind(4, 6, 3, **fields)


X = {1: torch.randn(2, 4, 9), 2: torch.randn(2, 4, 7, 8), 3: torch.randn(2, 4, 5, 6, 5)}
IDS = torch.arange(10)
SPECIAL: dict[str, tuple[Any, Tensor]] = {
    "standardized 1d": (conv(standardized(nn.Conv1d), padding=1, stride=2), X[1]),
    "standardized 2d": (conv(standardized(nn.Conv2d), padding=2, dilation=2), X[2]),
    "standardized 3d": (conv(standardized(nn.Conv3d), bias=False), X[3]),
    "standardized same": (conv(standardized(nn.Conv2d), padding="same"), X[2]),
    "standardized circular": (
        conv(standardized(nn.Conv1d), padding=1, padding_mode="circular"),
        X[1],
    ),
    "halved": (conv(Halved), X[1]),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Conv1d(4, 6, 3)), X[1]),
    "parametrized spectral": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)), X[2]),
    "parametrized linear": (lambda: parametrizations.weight_norm(nn.Linear(9, 6)), X[1]),
    "old weight norm": (lambda: weight_norm(nn.Conv2d(4, 6, 3)), X[2]),
    "old spectral norm": (lambda: spectral_norm(nn.Conv2d(4, 6, 3)), X[2]),
    "max_norm": (lambda: nn.Embedding(10, 8, max_norm=1.0), IDS),
    "pruned": (lambda: prune.random_unstructured(nn.Conv2d(4, 6, 3), "weight", 0.5), X[2]),
    "pruned bias": (lambda: prune.random_unstructured(nn.Conv1d(4, 6, 3), "bias", 0.5), X[1]),
    "pruned linear": (lambda: prune.random_unstructured(nn.Linear(9, 6), "weight", 0.5), X[1]),
}


def special(name: str, **fields: Any) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    make, x = SPECIAL[name]
    plain = nn.Sequential(OrderedDict(layer=make())).eval()
    model = quantlora.wrap(plain, r=2, target_modules=["layer"], **fields)
    for tensor in model[0].adapter_tensors("default").values():
        nn.init.normal_(tensor)
    return model, x


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", SPECIAL)
def test_layers_that_compute_their_weight_are_merged_to_the_same_output(name: str) -> None:
    model, x = special(name)
    before = model(x).detach()
    stored = copy.deepcopy(model.state_dict())
    report = quantlora.merge(model)
    assert relative(model(x).detach(), before) <= 1e-5
    assert report.layers[0].loss <= 1e-6
    quantlora.unmerge(model)
    assert torch.equal(model(x), before)
    assert all(torch.equal(one, stored[key]) for key, one in model.state_dict().items())


@pytest.mark.parametrize("dora", [False, True])
def test_what_no_plain_layer_gives_is_not_merged(dora: bool) -> None:
    make = conv(standardized(nn.Conv1d)) if dora else conv(Clamped)
    model = quantlora.wrap(nn.Sequential(make()), r=2, target_modules=["0"], use_dora=dora)
    with pytest.raises(MergeError, match="does more with its weight than the plain product"):
        quantlora.merge(model)


@pytest.mark.parametrize("kind", ["linear", "conv", "embedding", "experts"])
@pytest.mark.parametrize("dora", [False, True])
def test_merging_under_autocast_is_the_same(kind: str, dora: bool) -> None:
    from tests.tools.expert_models import Experts

    layer: dict[str, Any] = {
        "linear": nn.Linear(16, 8), "conv": nn.Conv1d(4, 6, 3), "embedding": nn.Embedding(9, 8),
        "experts": Experts(False),
    }  # fmt: skip
    fields: dict[str, Any] = {"target_modules": ["0"], "use_dora": dora}
    if kind == "experts":
        fields = {"target_modules": [], "target_parameters": ["w"]}
    model = quantlora.wrap(nn.Sequential(layer[kind]), r=2, init_lora_weights=False, **fields)
    other = copy.deepcopy(model)
    quantlora.merge(model)
    with torch.autocast("cpu", torch.bfloat16):
        quantlora.merge(other)
    for one, twin in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, twin)


@pytest.mark.parametrize("backend", ["normalfloat", "bitsandbytes_4bit", "bitsandbytes_8bit"])
def test_an_update_of_zero_leaves_the_packed_weight(backend: str) -> None:
    options = {
        "bitsandbytes_4bit": {"compress_statistics": True},
        "normalfloat": {"double_quant": True},
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512))
    quantlora.wrap(model, backend=backend, r=2, quantize_options=options.get(backend))
    before = model[0].dequantize().clone()
    report = quantlora.merge(model)
    assert report.layers[0].loss == 0
    assert torch.equal(model[0].dequantize(), before)


def test_rounding_without_an_update_is_measured_by_the_weight() -> None:
    torch.manual_seed(0)
    model = quantlora.wrap(nn.Sequential(nn.Linear(64, 64)), backend="normalfloat", r=2)
    model.append(nn.Linear(64, 8).half())
    before = model[0].dequantize()
    report = quantlora.merge(model, mode="dequantize")
    error = (model[0].dequantize().float() - before).norm() / before.norm()
    assert report.layers[0].loss == pytest.approx(float(error), rel=1e-3)
    assert error > 0
