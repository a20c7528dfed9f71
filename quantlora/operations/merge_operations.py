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
from quantlora.formats.quantizer import FLOAT, Quantizer
from quantlora.merging.merge import merge, unmerge
from quantlora.operations import reference
from quantlora.operations.operation import operation
from quantlora.operations.results import hold, hold_close, hold_equal
from quantlora.operations.trial import Trial
from quantlora.wrapped_model import merge_and_unload

OUTPUT = "the output after the merge differs"


def merge_mode(quantizer: Quantizer) -> str:
    """The mode to merge with: in the format itself where it can pack."""
    return "requantize" if quantizer.can_quantize else "dequantize"


@operation('merge(mode="requantize")', packs=True)
def merge_requantize(trial: Trial) -> None:
    """The layer computes with its new weight, which is as close as packing allows."""
    model, x = trial.two_adapters()
    wanted, name = reference.merged_weight(model.lora, ("default", "second")), trial.format.name
    merge(model, ["default", "second"])
    lora = model.lora
    hold(lora.quantizer.name == name, f"the merged layer is in {lora.quantizer.name}, not {name}")
    merged = lora.dequantize()
    limit = max(trial.subject.closeness, 8 * torch.finfo(merged.dtype).eps)
    hold_close(reference.distance(merged, wanted), limit, "the merged weight is off")
    bias = 0 if lora.base_bias is None else reference.float64(lora.base_bias)
    product = reference.float64(x) @ reference.float64(merged).t() + bias
    limit = trial.tolerance(lora.base_layer, x.dtype)
    hold_close(reference.relative(model(x), product), limit, OUTPUT)


@operation('merge(mode="dequantize")')
def merge_dequantize(trial: Trial) -> None:
    model, x = trial.two_adapters(lora_bias=True, **trial.another_variant())
    merge(model, ["default", "second"], mode="dequantize")
    trial.check(model, x, "default", "second")


@operation('merge(mode="keep")')
def merge_keep(trial: Trial) -> None:
    model, x = trial.one_adapter()
    merge(model, mode="keep")
    merged = bool(model.lora.merged_adapters)
    hold(merged == (trial.format.is_float), "float layers are merged, packed ones are kept")
    trial.check(model, x, "default")


@operation("merge one, keep another active")
def merge_one(trial: Trial) -> None:
    """The one that is not merged refers to the base from before, also for DoRA."""
    model, x = trial.two_adapters(**trial.another_variant())
    set_adapter(model, ["default", "second"])
    merge(model, "default", mode="dequantize")
    trial.check(model, x, "default", "second")


@operation("unmerge")
def take_out(trial: Trial) -> None:
    model, x = trial.two_adapters()
    layer, weight, before = model.lora.base_layer, model.lora.dequantize().clone(), model(x)
    merge(model, mode=merge_mode(trial.format))
    merge(model, "second", mode="dequantize")
    unmerge(model)
    hold(model.lora.base_layer is layer, "unmerge put another layer in place")
    hold_equal(model.lora.dequantize(), weight, "the weight after unmerge")
    hold_equal(model(x), before, "the output after unmerge")


@operation("merge_and_unload")
def fold_and_unload(trial: Trial) -> None:
    model, x = trial.one_adapter()
    wanted, layer = reference.output(model.lora, x, ("default",)), model.lora.base_layer
    merge_and_unload(model, mode="dequantize")
    left = registry().match("proj", model.proj).name
    hold(left == FLOAT, f"a layer of {left} is left")
    plain = next(model.proj.parameters()).dtype
    error = reference.relative(model(x.to(plain)), wanted)
    hold_close(error, trial.tolerance(layer, x.dtype, plain), OUTPUT)


@operation("export_merged")
def export(trial: Trial) -> None:
    """The float weight that is written is that of the merge."""
    model, _ = trial.one_adapter()
    wanted = merge_and_unload(copy.deepcopy(model), mode="dequantize").state_dict()
    with tempfile.TemporaryDirectory() as folder:
        export_merged(model, Path(folder) / "merged", next(iter(wanted.values())).dtype)
        tensors = load_file(Path(folder) / "merged" / "model.safetensors")
    hold(tensors.keys() == wanted.keys(), f"the file has {sorted(tensors)}")
    for name, tensor in wanted.items():
        hold_close(reference.relative(tensors[name], tensor.cpu()), 1e-6, f"{name} differs")
