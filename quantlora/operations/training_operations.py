"""What training does with an adapter: forward, backward, evaluation in between."""

from __future__ import annotations

import torch

from quantlora.operations.operation import operation
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
