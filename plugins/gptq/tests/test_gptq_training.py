"""Training through packed layers is training through their dense copy, on every kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from quantlora import BackendError, LoraLayer, registry, wrap
from quantlora.formats.layouts import linear_from

from .gptq_checkpoint import Recipe
from .gptq_loading import HAS_AUTO_GPTQ, KERNELS, WAYS, needs_library, tokens

pytestmark = needs_library

#: Kernels of GPTQModel that repack at their first forward without gradients.
LOCKING = [kernel for kernel in KERNELS if kernel in ("gptq_torch_aten", "gptq_torch_fused")]
#: 4 bits, every kernel; other widths, the loader's choice.
LOADED = [(Recipe(bias=True), kernel) for kernel in KERNELS] + [
    (Recipe(bits=2, group_size=16, desc_act=True), None),
    (Recipe(bits=3, v2=not HAS_AUTO_GPTQ), None),
    (Recipe(bits=8, sym=False), None),
]


def ids(value: object) -> str:
    return str(value)


def dense_copy(model: nn.Module) -> nn.Module:
    """``model`` with every GPTQ layer as an `nn.Linear` of the same weight."""
    for path, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear and "proj" in path.rpartition(".")[2]:
            quantizer = registry().match(path, layer)
            bias = quantizer.bias(layer)
            weight = quantizer.dequantize(layer).float()
            dense = linear_from(weight, None if bias is None else bias.float())
            model.set_submodule(path, dense)
    return model


def losses(model: nn.Module, steps: int = 20) -> Iterator[float]:
    """The training loss of each step, from the same A, B and data."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    for step in range(steps):
        batch = tokens(step % 4)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss)


def wrapped(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return wrap(model, r=4, lora_alpha=8)


def worst(model: nn.Module, dense: nn.Module) -> float:
    return max(abs(a - b) for a, b in zip(losses(model), losses(dense), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "kernel"), LOADED, ids=ids)
def test_twenty_steps_equal_those_on_a_dense_copy(recipe, kernel, load) -> None:
    model, dense = wrapped(load(recipe, kernel=kernel)), wrapped(dense_copy(load(recipe)))
    assert worst(model, dense) < 1e-4


@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
def test_an_eval_first_start_changes_nothing(kernel, load) -> None:
    """Generate a sample, then fine-tune: the order that locks kernels for inference."""
    model, dense = wrapped(load(Recipe(), kernel=kernel)), wrapped(dense_copy(load(Recipe())))
    model.eval().generate(tokens()[:, :4], max_new_tokens=4, do_sample=False, pad_token_id=2)
    assert worst(model, dense) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_however_it_was_loaded(way, load) -> None:
    first, *_, last = losses(wrapped(load(Recipe(), way, dtype=torch.float32)))
    assert last < first - 0.5


@pytest.mark.parametrize("kernel", LOCKING)
def test_a_layer_locked_before_wrap_is_refused_with_the_remedy(kernel, load) -> None:
    model = load(Recipe(), kernel=kernel).eval()
    with torch.no_grad():
        model(input_ids=tokens())
    with pytest.raises(BackendError) as error:
        wrapped(model)
    said = str(error.value)
    assert all(part in said for part in ("layers.0.self_attn.", "repacked", "gptq_torch"))
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


@pytest.mark.parametrize(("recipe", "kernel"), LOADED, ids=ids)
def test_gradients_equal_those_in_float64(recipe, kernel, load) -> None:
    model = wrapped(load(recipe, kernel=kernel))
    lora = model.get_submodule("model.layers.0.mlp.down_proj")
    with torch.no_grad():
        lora.lora_B["default"].weight.normal_()
    for order in (lora.eval, lora.train, lora.eval):
        order()
        with torch.no_grad():
            lora(torch.randn(1, 3, 256))
        x = torch.randn(2, 5, 256, requires_grad=True)
        _check_gradients(lora, x, torch.randn(2, 5, 128))


def _check_gradients(lora: LoraLayer, x: Tensor, upstream: Tensor) -> None:
    A, B = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    found = torch.autograd.grad(lora(x), (x, A, B), upstream)
    x64, A64, B64 = (t.detach().double().requires_grad_() for t in (x, A, B))
    update = lora.scaling["default"] * (x64 @ A64.t() @ B64.t())
    y = x64 @ lora.dequantize().double().t() + update
    wanted = torch.autograd.grad(y, (x64, A64, B64), upstream.double())
    for one, reference in zip(found, wanted, strict=True):
        assert (one - reference).norm() / reference.norm() < 1e-5


@pytest.mark.parametrize("kernel", KERNELS, ids=ids)
def test_nothing_of_a_weights_size_is_kept_for_backward(kernel, load) -> None:
    """Three tokens through one layer: their activations are small, its weight is not."""
    lora = wrapped(load(Recipe(), kernel=kernel)).get_submodule("model.layers.0.mlp.down_proj")
    kept: list[int] = []
    x = torch.randn(3, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, _same):
        lora(x).sum().backward()
    assert sum(kept) < lora.dequantize().numel() / 8


def _same(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("inner", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("outer", [torch.float16, torch.bfloat16, torch.float32])
def test_inputs_of_another_dtype_give_the_right_result(inner, outer, load) -> None:
    """Upstream fails on them, or rounds; the product is taken in the input's dtype."""
    layer = load(Recipe()).get_submodule("model.layers.0.mlp.up_proj")
    layer.scales = layer.scales.to(inner)
    model = wrap(nn.Sequential(layer), r=2, target_modules=["0"])
    x = torch.randn(4, 128).to(outer)
    wanted = x.double() @ model[0].dequantize().double().t()
    y = model(x)
    assert y.dtype == outer
    assert (y - wanted).norm() / wanted.norm() < {torch.float32: 1e-5}.get(outer, 1e-2)
