"""Operations that fold adapters into the base, and take them out."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from quantlora.adapters.switch import set_adapter
from quantlora.discovery.registration import registry
from quantlora.exporting.export import export_merged
from quantlora.merging.merge import merge, unmerge
from quantlora.testing import reference
from quantlora.testing.base import SuiteBase
from quantlora.testing.operations import (
    another_variant,
    check,
    expected,
    one_adapter,
    operation,
    two_adapters,
)
from quantlora.wrapped_model import merge_and_unload


@operation('merge(mode="requantize")', packs=True)
def _merge_requantize(suite: SuiteBase) -> None:
    """The layer computes with its new weight, which is as close as packing allows."""
    model, x = two_adapters(suite)
    merge(model, ["default", "second"])
    lora, weight = model.lora, model.lora.plain_base[1].dequantize(model.lora.plain_base[0])
    wanted = weight.double() + sum(
        lora.delta_weight(n, weight).double() for n in lora.merged_adapters
    )
    assert lora.quantizer.name == suite.quantizer
    error = (lora.dequantize().double() - wanted).norm() / wanted.norm()
    assert error <= max(suite.closeness, 1e-6)
    bias = 0 if lora.base_bias is None else reference.float64(lora.base_bias)
    product = reference.float64(x) @ reference.float64(lora.dequantize()).t() + bias
    assert reference.relative(model(x), product) <= suite.tolerance(lora.base_layer, x.dtype)


@operation('merge(mode="dequantize")')
def _merge_dequantize(suite: SuiteBase) -> None:
    model, x = two_adapters(suite, lora_bias=True, **another_variant(suite))
    merge(model, ["default", "second"], mode="dequantize")
    check(suite, model, x, "default", "second")


@operation('merge(mode="keep")')
def _merge_keep(suite: SuiteBase) -> None:
    model, x = one_adapter(suite)
    merge(model, mode="keep")
    assert bool(model.lora.merged_adapters) == (suite.quantizer == "float")
    check(suite, model, x, "default")


@operation("merge one, keep another active")
def _merge_one(suite: SuiteBase) -> None:
    """The one that is not merged refers to the base from before, also for DoRA."""
    model, x = two_adapters(suite, **another_variant(suite))
    set_adapter(model, ["default", "second"])
    merge(model, "default", mode="dequantize")
    check(suite, model, x, "default", "second")


@operation("unmerge")
def _unmerge(suite: SuiteBase) -> None:
    model, x = two_adapters(suite)
    weight, before = model.lora.dequantize().clone(), model(x)
    merge(model, mode="requantize" if suite.format.can_quantize else "dequantize")
    merge(model, "second", mode="dequantize")
    unmerge(model)
    assert torch.equal(model.lora.dequantize(), weight)
    assert torch.equal(model(x), before)


@operation("merge_and_unload")
def _merge_and_unload(suite: SuiteBase) -> None:
    model, x = one_adapter(suite)
    wanted = expected(model, x, ("default",))
    layer = model.lora.base_layer
    merge_and_unload(model, mode="dequantize")
    assert registry().match("proj", model.proj).name == "float"
    assert reference.relative(model(x), wanted) <= suite.tolerance(layer, x.dtype)


@operation("export_merged")
def _export_merged(suite: SuiteBase) -> None:
    """The float weight that is written is that of the merge."""
    model, _ = one_adapter(suite)
    wanted = merge_and_unload(copy.deepcopy(model), mode="dequantize").float().state_dict()
    with tempfile.TemporaryDirectory() as folder:
        export_merged(model, Path(folder) / "merged", torch.float32)
        tensors = load_file(Path(folder) / "merged" / "model.safetensors")
    assert tensors.keys() == wanted.keys()
    assert all(reference.relative(tensors[k], one.cpu()) <= 1e-6 for k, one in wanted.items())
