"""What is tried with one family: four questions, each with a yes or the reason of a no."""

from __future__ import annotations

import copy
import logging
import re
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import quantlora
from quantlora.adapters.adapter_modules import lora_layers
from quantlora.exporting.model_outputs import furthest, outputs, usable_inputs
from tests.compatibility.families import classes
from tests.compatibility.precision import ROUNDING, float32_experts
from tests.compatibility.tiny_config import tiny_config

QUESTIONS = ("wraps", "merged", "peft", "exports")
#: Largest relative error of outputs in float64.
TOLERANCE = 1e-9
#: Parameters of a config that is tiny.
_LARGEST = 20_000_000


@dataclass
class Findings:
    """The answers for one family: "yes", or why not."""

    family: str
    model: str
    answers: dict[str, str] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        return {"family": self.family, "model": self.model, **self.answers}


class HoleError(Exception):
    """Why a question has no yes."""


class OffError(HoleError):
    """Outputs differ by ``error``, relative to the largest."""

    def __init__(self, error: float) -> None:
        super().__init__(f"error {error:.1g}")
        self.error = error


def run_trial(family: str) -> Findings:
    """Ask all questions of ``family``; what could not be asked is told under each."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = Findings(family, "")
    try:
        config_class, model_class = classes(family)
        found.model = model_class.__name__
        base = model_of(config_class, model_class)
        inputs = inputs_of(base)
    except Exception as error:
        return _all(found, f"not tried: {reason(error)}")
    plain = copy.deepcopy(base)
    try:
        model = _wrapped(base)
        found.answers["wraps"] = "yes"
    except Exception as error:
        return _all(found, reason(error))
    trials = {"peft": _equals_peft, "exports": _exports, "merged": _equals_merged}
    for name, ask in trials.items():
        found.answers[name] = _answer(ask, model, plain, inputs)
    return found


def _all(found: Findings, why: str) -> Findings:
    for name in QUESTIONS:
        found.answers.setdefault(name, why)
    return found


def _answer(ask: Any, model: Any, plain: Any, inputs: Any) -> str:
    try:
        return ask(model, plain, inputs) or "yes"
    except OffError as off:
        small = float32_experts(plain, inputs) if off.error < ROUNDING else []
        cause = f": {', '.join(small)} of Transformers computes in float32, whatever the model is"
        return f"{off}{cause if small else ''}"
    except Exception as error:
        return reason(error)


def reason(error: Exception) -> str:
    """One short line: the first sentence of what was said."""
    text = " ".join(str(error).split())
    library = re.search(r"requires the (\w+) library", text)
    if library:
        return f"Transformers needs {library.group(1)} for it"
    text = re.sub(r"^Class validation error for validator '\w+': ", "", text)
    first = re.split(r"(?<=[a-z)'])[.;] |, with weight", text)[0][:140]
    return (
        first if isinstance(error, (HoleError, quantlora.QuantloraError)) else _raised(error, first)
    )


def _raised(error: Exception, text: str) -> str:
    if text.startswith("[PEFT"):
        return f"PEFT refuses: {text.partition('] ')[2]}"
    return f"{type(error).__name__}: {text}"


# -- the model


def model_of(config_class: Any, model_class: Any) -> nn.Module:
    """Of tiny size, in float64, with random weights that no part of it hides."""
    try:
        config = tiny_config(config_class)
        with torch.device("meta"):
            size = sum(one.numel() for one in model_class._from_config(config).parameters())
        if size > _LARGEST:
            raise HoleError(f"no tiny config: {size / 1e6:.0f} M parameters")
        torch.manual_seed(0)
        model = model_class._from_config(config, experts_implementation="eager")
    except HoleError:
        raise
    except Exception as error:
        text = reason(error)
        raise HoleError(text if "needs" in text else f"no tiny config: {text}") from error
    double: nn.Module = model.double().eval()
    return double


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    found = usable_inputs(model)
    if found is None:
        raise HoleError("no inputs could be made from its signature")
    return dict(found[0])


def _wrapped(model: nn.Module) -> Any:
    """With the defaults of `wrap`, and random A and B."""
    quantlora.wrap(model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    return model.eval()


# -- the questions


def _equals_merged(model: Any, plain: Any, inputs: Any) -> str:
    """The adapter's output is the merged model's, it has an effect, and B gets a gradient."""
    wanted, base = outputs(model, inputs), outputs(plain, inputs)
    effect = furthest(wanted, base)
    silent = _without_gradient(model, inputs, wanted)
    quantlora.merge(model)
    error = furthest(outputs(model, inputs), wanted)
    quantlora.unmerge(model)
    if not error <= TOLERANCE:
        raise OffError(error)
    if not effect > TOLERANCE:
        raise HoleError("the adapter has no effect on the output")
    if silent:
        raise HoleError(f"no gradient in {silent}")
    return "yes"


def _without_gradient(model: Any, inputs: Any, wanted: list[Tensor]) -> str:
    """Layers whose adapter changes the output and learns nothing from it, by their last name."""
    torch.manual_seed(0)
    answer = model(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
    loss = sum(one.nan_to_num(0, 0, 0).pow(2).sum() for one in _floats(answer))
    loss.backward()
    quiet = {path: layer for path, layer in lora_layers(model) if _quiet(layer)}
    model.zero_grad(set_to_none=True)
    factors = [one for layer in quiet.values() for one in layer.lora_B.parameters()]
    before = [one.detach().clone() for one in factors]
    for one in factors:
        one.data.zero_()
    used = furthest(outputs(model, inputs), wanted) > TOLERANCE
    for one, value in zip(factors, before, strict=True):
        one.data.copy_(value)
    return ", ".join(_last_names(quiet)) if used else ""


def _last_names(paths: Any) -> list[str]:
    return list(dict.fromkeys(path.rsplit(".", 1)[-1] for path in paths))


def _quiet(layer: Any) -> bool:
    grads = [one.grad for one in layer.lora_B.parameters()]
    return all(grad is None or bool((grad == 0).all()) for grad in grads)


def _floats(answer: Any) -> list[Tensor]:
    from quantlora.exporting.model_outputs import _tensors

    return [one for one in _tensors(answer) if one.requires_grad]


def _equals_peft(model: Any, plain: Any, inputs: Any) -> str:
    """PEFT loads the adapter that is saved here, and computes the same."""
    import peft

    with tempfile.TemporaryDirectory() as folder:
        quantlora.save_adapter(model, folder)
        theirs = peft.PeftModel.from_pretrained(
            copy.deepcopy(plain), folder, autocast_adapter_dtype=False
        )
    there = {path for path, module in theirs.base_model.model.named_modules() if _adapted(module)}
    left_out = [path for path, _ in lora_layers(model) if path not in there]
    if left_out:
        raise HoleError(f"PEFT puts no adapter on {', '.join(_last_names(left_out))}")
    error = furthest(outputs(theirs.eval(), inputs), outputs(model, inputs))
    if error <= TOLERANCE:
        return "yes"
    merged = theirs.merge_and_unload()
    if furthest(outputs(merged, inputs), outputs(model, inputs)) <= TOLERANCE:
        raise HoleError(
            f"PEFT's adapter is {error:.1g} off its own merged model, which equals ours"
        )
    raise OffError(error)


def _adapted(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _exports(model: Any, plain: Any, inputs: Any) -> str:
    """The merged model as a plain checkpoint, loaded again by Transformers."""
    with tempfile.TemporaryDirectory() as folder:
        report = quantlora.export_merged(model, Path(folder) / "merged", progress=False)
    check = report.check
    if check is None or check.logits is None:
        return "yes, tensors compared"
    if not check.logits <= TOLERANCE:
        raise OffError(check.logits)
    return "yes"
