"""Operations on adapters: from adding one to a mixed batch of several."""

from __future__ import annotations

import tempfile
import warnings

import torch
from torch import Tensor

from quantlora.adapters.disabling import adapters_disabled, disable_adapters, enable_adapters
from quantlora.adapters.mixed_batch import mixed_batch
from quantlora.adapters.switch import delete_adapter, rename_adapter, set_adapter
from quantlora.checkpoint.hot_swap import hot_swap, prepare_hot_swap
from quantlora.checkpoint.save import save_adapter
from quantlora.combining.combination import add_weighted_adapter
from quantlora.merging.merge import merge, unmerge
from quantlora.testing import reference
from quantlora.testing.base import OneLayerModel, SuiteBase
from quantlora.testing.operations import (
    another_variant,
    check,
    expected,
    one_adapter,
    operation,
    two_adapters,
)
from quantlora.wrapped_model import load_adapter


@operation("add")
def _add(suite: SuiteBase) -> None:
    model, x = two_adapters(suite)
    check(suite, model, x, "second")


@operation("save, load")
def _save_and_load(suite: SuiteBase) -> None:
    model, x = one_adapter(suite)
    before = model(x)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        delete_adapter(model, "default")
        load_adapter(model, folder, "again")
    assert torch.equal(model(x), before)


@operation("set one")
def _set_one(suite: SuiteBase) -> None:
    model, x = two_adapters(suite)
    set_adapter(model, "default")
    check(suite, model, x, "default")


@operation("set several")
def _set_several(suite: SuiteBase) -> None:
    model, x = two_adapters(suite)
    set_adapter(model, ["default", "second"])
    check(suite, model, x, "default", "second")


@operation("disable, enable")
def _disable_and_enable(suite: SuiteBase) -> None:
    model, x = one_adapter(suite)
    disable_adapters(model)
    check(suite, model, x)
    enable_adapters(model)
    check(suite, model, x, "default")
    with adapters_disabled(model):
        check(suite, model, x)
    check(suite, model, x, "default")


@operation("rename")
def _rename(suite: SuiteBase) -> None:
    model, x = one_adapter(suite)
    before = model(x)
    rename_adapter(model, "default", "renamed")
    assert torch.equal(model(x), before)
    check(suite, model, x, "renamed")


@operation("delete")
def _delete(suite: SuiteBase) -> None:
    model, x = two_adapters(suite)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        delete_adapter(model, "second")
    assert len(said) == 1
    check(suite, model, x, "default")


@operation("rsLoRA")
def _rslora(suite: SuiteBase) -> None:
    model, x = two_adapters(suite, use_rslora=True)
    assert model.lora.scaling["second"] == 2
    check(suite, model, x, "second")


@operation("DoRA", varies=True)
def _dora(suite: SuiteBase) -> None:
    """Also beside a plain adapter that was there before."""
    model, x = two_adapters(suite, use_dora=True)
    with torch.no_grad():
        model.lora.adapter_tensors("second")["lora_magnitude_vector"].mul_(1.25)
    set_adapter(model, ["default", "second"])
    check(suite, model, x, "default", "second")


@operation("lora_bias")
def _lora_bias(suite: SuiteBase) -> None:
    model, x = two_adapters(suite, lora_bias=True)
    with torch.no_grad():
        model.lora.adapter_tensors("second")["lora_B.bias"].normal_()
    check(suite, model, x, "second")


@operation("bias")
def _bias(suite: SuiteBase) -> None:
    """The layer's own bias is the adapter's while it counts, and else what it was."""
    layer = suite.layer(bias=True in suite.biases)
    own = suite.format.bias(layer)
    if own is None:
        return
    plain = reference.float64(own)
    model, x = suite.wrapped(layer, bias="lora_only"), suite.input(layer, 6)
    with torch.no_grad():
        _own_bias(model).add_(1)
    assert _own_bias(model).requires_grad
    check(suite, model, x, "default")
    with adapters_disabled(model):
        assert torch.equal(reference.float64(_own_bias(model)), plain)
    merge(model, mode="dequantize")
    check(suite, model, x, "default")
    unmerge(model)
    delete_adapter(model, "default")
    assert torch.equal(reference.float64(_own_bias(model)), plain)


def _own_bias(model: OneLayerModel) -> Tensor:
    bias = model.lora.base_bias
    assert bias is not None
    return bias


@operation("mixed batch")
def _mixed_batch(suite: SuiteBase) -> None:
    model, x = two_adapters(suite, **another_variant(suite))
    names = ["default", "__base__", "second", "default", "second", "__base__"]
    rows = [() if name == "__base__" else (name,) for name in names]
    wanted = [expected(model, x[i : i + 1], row) for i, row in enumerate(rows)]
    with mixed_batch(model, names):
        error = reference.relative(model(x), torch.cat(wanted))
    assert error <= suite.tolerance(model.lora.base_layer, x.dtype)


@operation("mixed batch, training")
def _mixed_batch_training(suite: SuiteBase) -> None:
    """Each adapter's gradient comes from its own samples, x's from the base too."""
    model, x = two_adapters(suite)
    set_adapter(model, ["default", "second"])
    with mixed_batch(model, ["default"] * 3 + ["__base__"] * 3):
        model(x).sum().backward()
    mixed = model.lora.factors("default")[1].weight.grad
    assert mixed is not None
    assert model.lora.factors("second")[1].weight.grad is None
    model.zero_grad()
    set_adapter(model, "default")
    model(x[:3]).sum().backward()
    alone = model.lora.factors("default")[1].weight.grad
    assert alone is not None
    assert reference.relative(mixed, alone) <= suite.tolerance(model.lora.base_layer, x.dtype)


@operation("weighted combination")
def _weighted_combination(suite: SuiteBase) -> None:
    """By svd of the updates themselves: also of different ranks, and of DoRA."""
    model, x = two_adapters(suite, lora_bias=True, **another_variant(suite))
    lora, weight = model.lora, model.lora.dequantize()
    wanted = 0.7 * lora.delta_weight("default", weight) - 2 * lora.delta_weight("second", weight)
    rank = min(lora.out_features, lora.in_features)
    add_weighted_adapter(model, ["default", "second"], [0.7, -2], "sum", svd_rank=rank)
    assert reference.relative(lora.delta_weight("sum", weight), wanted) <= 1e-5
    check(suite, model, x, "sum")


@operation("hot swap")
def _hot_swap(suite: SuiteBase) -> None:
    """Another adapter's values in the slot of this one, also of a smaller rank."""
    model, x = two_adapters(suite)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        prepare_hot_swap(model, 4, "second")
        hot_swap(model, folder, "second")
    check(suite, model, x, "default")
    check(suite, model, x, "second")
