"""LoRA on fused experts against W + ΔW of all experts in float64, for every family's module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import quantlora
from quantlora.layers.experts import LoraExperts
from tests.tools.expert_modules import FAMILIES, adapted, by_whole_weights, expert_module, rows_for

CLOSE: dict[str, float] = {"rtol": 1e-9, "atol": 1e-9}


def trained(model: Any) -> list[Tensor]:
    return [one for one in model.parameters() if one.requires_grad]


def gradients(y: Tensor, inputs: list[Tensor], **kwargs: Any) -> list[Tensor]:
    return list(torch.autograd.grad(y.square().sum(), inputs, **kwargs))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True, "lora_alpha": 3}])
def test_output_and_gradients_are_those_of_the_whole_weights(family: str, fields: Any) -> None:
    model = adapted(expert_module(family), **fields)
    layer, rows = model.experts, rows_for(model.experts.base_layer)
    assert type(layer) is LoraExperts
    wanted = by_whole_weights(layer, ("default",), *rows)
    assert torch.allclose(layer(*rows), wanted, **CLOSE)
    inputs = [*trained(model), *(one for one in rows if one.requires_grad)]
    pairs = zip(gradients(layer(*rows), inputs), gradients(wanted, inputs), strict=True)
    assert all(torch.allclose(found, one, **CLOSE) for found, one in pairs)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
def test_a_second_derivative_is_that_of_the_whole_weights(family: str) -> None:
    model = adapted(expert_module(family))
    rows, found = rows_for(model.experts.base_layer), []
    for y in (model.experts(*rows), by_whole_weights(model.experts, ("default",), *rows)):
        inputs = [rows[0], *trained(model)]
        first = gradients(y, inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), inputs))
    assert all(torch.allclose(one, two, rtol=1e-7) for one, two in zip(*found, strict=True))


def test_a_trained_base_gets_its_gradient() -> None:
    model = adapted(expert_module("gpt_oss"))
    model.experts.base_layer.requires_grad_(True)
    rows = rows_for(model.experts.base_layer)
    wanted = gradients(by_whole_weights(model.experts, ("default",), *rows), trained(model))
    found = gradients(model.experts(*rows), trained(model))
    assert all(torch.allclose(*pair, **CLOSE) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("family", ["mixtral", "llama4_text"])
def test_several_adapters_are_summed_and_without_any_the_base_is_called(family: str) -> None:
    module = expert_module(family)
    rows = rows_for(module)
    plain = module(*rows)
    model = adapted(module)
    adapted_again(model)
    quantlora.set_adapter(model, ["default", "second"])
    wanted = by_whole_weights(model.experts, ("default", "second"), *rows)
    assert torch.allclose(model.experts(*rows), wanted, **CLOSE)
    with quantlora.adapters_disabled(model):
        assert torch.equal(model.experts(*rows), plain)


def adapted_again(model: Any) -> None:
    """One more adapter, of another rank and scale."""
    names = [f"experts.{name}" for name in model.experts.layout.names]
    fields = {"target_modules": [], "target_parameters": names, "init_lora_weights": False}
    quantlora.wrap(model, adapter_name="second", r=3, lora_alpha=5, **fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_batch_go_through_their_own_adapters(family: str) -> None:
    """Eight tokens are four samples of two; each row's output is that of its adapter alone."""
    model = adapted(expert_module(family))
    adapted_again(model)
    rows = rows_for(model.experts.base_layer)
    samples = ["second", "__base__", "default", "second"]
    with quantlora.mixed_batch(model, samples):
        found = model.experts(*rows)
    for name in dict.fromkeys(samples):
        alone = by_whole_weights(model.experts, () if name == "__base__" else (name,), *rows)
        own = torch.tensor([one == name for one in samples]).repeat_interleave(2)
        own = own.repeat(len(found) // 8)
        assert torch.allclose(found[own], alone[own], **CLOSE)


def test_the_gradients_of_a_mixed_batch_are_those_of_its_parts() -> None:
    model = adapted(expert_module("mixtral"))
    adapted_again(model)
    quantlora.set_adapter(model, ["default", "second"])
    rows = rows_for(model.experts.base_layer)
    with quantlora.mixed_batch(model, ["second", "default"]):
        found = gradients(model.experts(*rows), trained(model))
    halves = [tuple(one[part] for one in rows) for part in (slice(4), slice(4, 8))]
    outputs = [
        by_whole_weights(model.experts, (name,), *half)
        for name, half in zip(("second", "default"), halves, strict=True)
    ]
    wanted = gradients(torch.cat(outputs), trained(model))
    assert all(torch.allclose(*pair, **CLOSE) for pair in zip(found, wanted, strict=True))


def test_tokens_that_cannot_be_shared_out_are_refused() -> None:
    model = adapted(expert_module("mixtral"))
    rows = rows_for(model.experts.base_layer)
    with (
        quantlora.mixed_batch(model, ["default"] * 3),
        pytest.raises(quantlora.AdapterError, match="not as many for each"),
    ):
        model.experts(*rows)


def test_dropout_has_the_right_mean_and_the_same_mask_in_backward() -> None:
    """Linear in B: with a fixed mask the gradient of B alone says what the output was."""
    model = adapted(expert_module("mixtral"), lora_dropout=0.3)
    layer, rows = model.experts.train(), rows_for(model.experts.base_layer)
    B = layer.lora_B["default"]["down_proj"].weight
    with quantlora.adapters_disabled(model):
        plain = layer(*rows)
    layer.lora_B["default"]["gate_up_proj"].weight.data.zero_()
    y = layer(*rows)
    (of_B,) = torch.autograd.grad(y.sum(), [B])
    assert torch.allclose((of_B * B).sum(), (y - plain).sum(), **CLOSE)
    torch.manual_seed(0)
    mean = torch.stack([layer(*rows).detach() for _ in range(400)]).mean(0) - plain
    wanted = layer.eval()(*rows) - plain
    assert float((mean - wanted).norm() / wanted.norm()) < 0.15


def test_dropout_is_the_same_where_forward_is_computed_again() -> None:
    model = adapted(expert_module("mixtral"), lora_dropout=0.5)
    layer, rows = model.experts.train(), rows_for(model.experts.base_layer)
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        run = torch.utils.checkpoint.checkpoint if checkpointed else (lambda f, *a, **_: f(*a))
        found.append(gradients(run(layer, *rows, use_reentrant=False), trained(model)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_stays_near_float64(dtype: torch.dtype) -> None:
    model = adapted(expert_module("gpt_oss"))
    rows = rows_for(model.experts.base_layer)
    wanted = by_whole_weights(model.experts, ("default",), *rows)
    model.experts.base_layer.to(dtype)
    model.experts.lora_A.float(), model.experts.lora_B.float()
    found = model.experts(rows[0].to(dtype), rows[1], rows[2].to(dtype))
    assert found.dtype == dtype
    assert float((found - wanted).norm() / wanted.norm()) < 4 * torch.finfo(dtype).eps


def test_a_step_keeps_neither_weights_nor_gathered_rows() -> None:
    """Kept are the rows that come in, the gate's input and products of rank r; nothing else."""
    model = adapted(expert_module("mixtral"))
    rows = rows_for(model.experts.base_layer)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *rows)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.experts(*rows)
    routed, width = rows[1].numel(), model.experts.base_layer.gate_up_proj.shape[1]
    sizes = [size for place, size in kept.items() if place not in own]
    assert sum(sizes) == routed * (width + 2 * 2)


def test_experts_of_other_processes_are_left_out() -> None:
    """Expert parallelism marks them by the number of experts."""
    model = adapted(expert_module("mixtral"))
    x, index, weights = rows_for(model.experts.base_layer)
    experts = len(model.experts.base_layer.gate_up_proj)
    other = index.clone()
    other[:, 0] = experts
    wanted = model.experts(x, index, torch.cat([weights[:, :1] * 0, weights[:, 1:]], 1))
    assert torch.allclose(model.experts(x, other, weights), wanted, **CLOSE)
