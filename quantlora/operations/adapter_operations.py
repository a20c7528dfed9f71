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
from quantlora.errors import AdapterWarning
from quantlora.merging.merge import merge, unmerge
from quantlora.operations import reference
from quantlora.operations.operation import operation
from quantlora.operations.results import hold, hold_close, hold_equal
from quantlora.operations.subject import OneLayerModel
from quantlora.operations.trial import Trial
from quantlora.wrapped_model import load_adapter

OUTPUT = "the output"


@operation("add")
def add(trial: Trial) -> None:
    model, x = trial.two_adapters()
    trial.check(model, x, "second")


@operation("save, load")
def save_and_load(trial: Trial) -> None:
    model, x = trial.one_adapter()
    before = model(x)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        delete_adapter(model, "default")
        load_adapter(model, folder, "again")
    hold_equal(model(x), before, OUTPUT)


@operation("set one")
def set_one(trial: Trial) -> None:
    model, x = trial.two_adapters()
    set_adapter(model, "default")
    trial.check(model, x, "default")
    set_adapter(model, "second")
    trial.check(model, x, "second")


@operation("set several")
def set_several(trial: Trial) -> None:
    model, x = trial.two_adapters()
    set_adapter(model, ["default", "second"])
    trial.check(model, x, "default", "second")


@operation("disable, enable")
def disable_and_enable(trial: Trial) -> None:
    model, x = trial.one_adapter()
    disable_adapters(model)
    trial.check(model, x)
    enable_adapters(model)
    trial.check(model, x, "default")
    with adapters_disabled(model):
        trial.check(model, x)
        off = model(x)
    trial.check(model, x, "default")
    set_adapter(model, [])
    hold_equal(model(x), off, "the output without an adapter")


@operation("rename")
def rename(trial: Trial) -> None:
    model, x = trial.one_adapter()
    before = model(x)
    rename_adapter(model, "default", "renamed")
    hold_equal(model(x), before, OUTPUT)
    trial.check(model, x, "renamed")


@operation("delete")
def delete(trial: Trial) -> None:
    model, x = trial.two_adapters()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        delete_adapter(model, "second")
    ours = [warning for warning in said if issubclass(warning.category, AdapterWarning)]
    hold(len(ours) == 1, f"{len(ours)} warnings say that another adapter is active")
    hold(model.lora.adapters == ("default",), f"the adapters are {model.lora.adapters}")
    trial.check(model, x, "default")


@operation("rsLoRA")
def rslora(trial: Trial) -> None:
    model, x = trial.two_adapters(use_rslora=True)
    scale = model.lora.scaling["second"]
    hold(scale == 2, f"the scale is {scale}, not alpha / sqrt(r) = 2")
    trial.check(model, x, "second")


@operation("DoRA", variant="dora")
def dora(trial: Trial) -> None:
    """Also beside a plain adapter that was there before."""
    model, x = trial.two_adapters(use_dora=True)
    with torch.no_grad():
        model.lora.adapter_tensors("second")["lora_magnitude_vector"].mul_(1.25)
    set_adapter(model, ["default", "second"])
    trial.check(model, x, "default", "second")


@operation("lora_bias")
def lora_bias(trial: Trial) -> None:
    model, x = trial.two_adapters(lora_bias=True)
    with torch.no_grad():
        model.lora.adapter_tensors("second")["lora_B.bias"].normal_()
    trial.check(model, x, "second")


@operation("bias")
def bias(trial: Trial) -> None:
    """The layer's own bias is the adapter's while it counts, and else what it was."""
    layer = trial.layer(bias=True in trial.subject.biases)
    base_bias = trial.format.bias(layer)
    if base_bias is None:
        return
    plain = reference.float64(base_bias)
    model, x = trial.wrapped(layer, bias="lora_only"), trial.input(layer, 6)
    with torch.no_grad():
        _own_bias(model).add_(1)
    hold(_own_bias(model).requires_grad, "the layer's bias is not trained")
    trial.check(model, x, "default")
    with adapters_disabled(model):
        hold_equal(reference.float64(_own_bias(model)), plain, "the bias without the adapter")
    merge(model, mode="dequantize")
    trial.check(model, x, "default")
    unmerge(model)
    delete_adapter(model, "default")
    hold_equal(reference.float64(_own_bias(model)), plain, "the bias after the adapter")


def _own_bias(model: OneLayerModel) -> Tensor:
    base_bias = model.lora.base_bias
    assert base_bias is not None
    return base_bias


@operation("mixed batch")
def mixed(trial: Trial) -> None:
    model, x = trial.two_adapters(**trial.another_variant())
    names = ["default", "__base__", "second", "default", "second", "__base__"]
    wanted = [
        reference.output(model.lora, x[i : i + 1], () if name == "__base__" else (name,))
        for i, name in enumerate(names)
    ]
    with mixed_batch(model, names):
        error = reference.relative(model(x), torch.cat(wanted))
    hold_close(error, trial.tolerance(model.lora.base_layer, x.dtype), "the batch's output differs")


@operation("mixed batch, training")
def mixed_training(trial: Trial) -> None:
    """Each adapter's gradient comes from its own samples, x's from the base too."""
    model, x = trial.two_adapters()
    set_adapter(model, ["default", "second"])
    with mixed_batch(model, ["default"] * 3 + ["__base__"] * 3):
        model(x).sum().backward()
    found = _grads(model, "default")
    hold(not _grads(model, "second"), "an adapter without samples has a gradient")
    model.zero_grad()
    set_adapter(model, "default")
    model(x[:3]).sum().backward()
    limit = trial.tolerance(model.lora.base_layer, x.dtype)
    for name, alone in _grads(model, "default").items():
        hold(name in found, f"no gradient reached {name}")
        hold_close(reference.relative(found[name], alone), limit, f"the gradient of {name} differs")


def _grads(model: OneLayerModel, adapter: str) -> dict[str, Tensor]:
    tensors = model.lora.adapter_tensors(adapter)
    return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}


@operation("weighted combination")
def weighted_combination(trial: Trial) -> None:
    """By svd of the updates themselves: also of different ranks, and of DoRA."""
    model, x = trial.two_adapters(lora_bias=True, **trial.another_variant())
    lora, weight = model.lora, model.lora.dequantize()
    wanted = 0.7 * lora.delta_weight("default", weight) - 2 * lora.delta_weight("second", weight)
    rank = min(lora.out_features, lora.in_features)
    add_weighted_adapter(model, ["default", "second"], [0.7, -2], "sum", svd_rank=rank)
    error = reference.relative(lora.delta_weight("sum", weight), wanted)
    # A float32 SVD of a full-rank matrix: a few 1e-5 on some CPUs, a wrong sum is off by 0.1.
    hold_close(error, 1e-4, "the combination differs from the sum of the updates")
    trial.check(model, x, "sum")


@operation("hot swap")
def swap(trial: Trial) -> None:
    """Another adapter's values in the slot of this one, also of a smaller rank."""
    model, x = trial.two_adapters()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder)
        prepare_hot_swap(model, 4, "second")
        hot_swap(model, folder, "second")
    trial.check(model, x, "default")
    trial.check(model, x, "second")
