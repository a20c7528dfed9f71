"""What training does with an adapter: forward, backward, evaluation in between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantlora.adapters.switch import set_adapter
from quantlora.operations.operation import operation
from quantlora.operations.results import hold
from quantlora.operations.subject import OneLayerModel
from quantlora.operations.trial import Trial


@operation("forward")
def forward(trial: Trial) -> None:
    model, x = trial.one_adapter()
    trial.check(model, x, "default")


@operation("backward")
def backward(trial: Trial) -> None:
    """Gradients of the input and of all that is trained."""
    model, x = trial.one_adapter()
    trial.check_gradients(model, model.lora.dequantize().clone(), x)


@operation("eval then train")
def eval_then_train(trial: Trial) -> None:
    """Some kernels repack themselves for inference, and are wrong from then on."""
    model, x = trial.one_adapter()
    weight = model.lora.dequantize().clone()
    model.eval()
    for samples in (x, x[:1]):
        with torch.no_grad():
            trial.check(model, samples, "default")
    trial.check_gradients(model.train(), weight, x)


@operation("train")
def train(trial: Trial) -> None:
    """A step changes what the layer declares as trained, also after another adapter was active."""
    model, x = trial.two_adapters()
    lora, theirs = model.lora, _adapters_own(model)
    tensors = [lora.adapter_tensors(name) for name in lora.adapters]
    ids = {id(tensor) for by_key in tensors for tensor in by_key.values()}
    missing = [name for number, name in theirs.items() if number not in ids]
    hold(not missing, f"not in adapter_tensors: {missing}")
    _leave_zero(tensors)
    for name in ("default", "second"):
        set_adapter(model, name)
        before = {key: tensor.clone() for key, tensor in lora.adapter_tensors(name).items()}
        _step(model, x)
        for key, tensor in lora.adapter_tensors(name).items():
            trained, changed = lora.is_trained(name, key), not torch.equal(tensor, before[key])
            hold(trained or not changed, f"{key} is trained, and is_trained says that it is not")
            hold(changed or not trained, f"{key} is not trained, and is_trained says that it is")


@torch.no_grad()
def _leave_zero(adapters: list[dict[str, nn.Parameter]]) -> None:
    """Where an initializer has B = 0, A has no gradient yet."""
    for tensor in (parameter for tensors in adapters for parameter in tensors.values()):
        if not tensor.any():
            nn.init.normal_(tensor, std=0.05)


def _step(model: OneLayerModel, x: Tensor) -> None:
    """One step against the gradient, whatever takes part in it."""
    model.train().zero_grad()
    model(x).square().sum().backward()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad and tensor.grad is not None:
                tensor.sub_(0.1 * tensor.grad)


def _adapters_own(model: OneLayerModel) -> dict[int, str]:
    """Parameters around the base, by id."""
    base = {id(parameter) for parameter in model.lora.base_layer.parameters()}
    named = model.lora.named_parameters()
    return {id(parameter): name for name, parameter in named if id(parameter) not in base}
