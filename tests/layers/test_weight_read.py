"""Models that read ``layer.weight``: the adapters count there, with gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError, AdapterWarning
from quantlora.layers.layer import LoraLayer

BACKENDS = ["auto", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat"]
X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A linear layer that is called, or whose weight and bias are read."""

    def __init__(self, read: bool = True) -> None:
        super().__init__()
        self.proj, self.read = nn.Linear(64, 64), read

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proj.weight, self.proj.bias) if self.read else self.proj(x)


def wrapped(backend: str = "auto", **fields: Any) -> Layer:
    torch.manual_seed(0)
    given = {"r": 4, "target_modules": ["proj"], "init_lora_weights": False, **fields}
    return quantlora.wrap(Layer(), backend=backend, **given)


def called(model: Layer) -> Layer:
    twin = copy.deepcopy(model)
    twin.read = False
    return twin


@pytest.mark.parametrize("fields", [{}, {"lora_bias": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_that_is_read_gives_what_it_gives_when_called(backend: str, fields: Any) -> None:
    model = wrapped(backend, **fields)
    twin, x, y = called(model), X.clone().requires_grad_(), X.clone().requires_grad_()
    read, wanted = model(x), twin(y)
    torch.testing.assert_close(read, wanted, atol=1e-5, rtol=1e-5)
    read.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-4)


USES = {
    "transposed": lambda w, x: x @ w.T,
    "chunked": lambda w, x: torch.cat([x @ one.t() for one in w.chunk(4)], -1),
    "reshaped": lambda w, x: torch.einsum("hio,bo->bhi", w.view(4, 16, 64), x),
    "as a kernel of size one": lambda w, x: F.conv1d(x[..., None], w.unsqueeze(-1)),
    "sliced": lambda w, x: x @ w[8:24].transpose(0, 1),
    "joined": lambda w, x: x @ torch.cat([w.t(), w], dim=1),
    "cast": lambda w, x: F.linear(x.double(), w.double()),
    "made contiguous": lambda w, x: w.contiguous() @ x.t(),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_read_weight_has_the_value_and_gradient_of_the_matrix(use: str) -> None:
    layer = wrapped().proj
    A, B = (factor.weight for factor in layer.factors("default"))
    matrix = layer.base_layer.weight + layer.scaling["default"] * B @ A
    wanted = torch.autograd.grad(USES[use](matrix, X).square().sum(), (A, B))
    found = torch.autograd.grad(USES[use](layer.weight, X).square().sum(), (A, B))
    torch.testing.assert_close(USES[use](layer.weight, X), USES[use](matrix, X))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["bitsandbytes_4bit", "normalfloat"])
def test_a_packed_weight_looks_like_one_of_the_compute_dtype(backend: str) -> None:
    weight = quantlora.wrap(
        Layer().bfloat16(), backend=backend, target_modules=["proj"]
    ).proj.weight
    assert weight.dtype.is_floating_point
    assert weight.shape == (64, 64)
    assert isinstance(weight, Tensor)
    assert weight.device == X.device


def test_asking_for_dtype_and_shape_again_unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = wrapped("bitsandbytes_4bit").proj
    assert layer.weight.dtype == torch.float32
    monkeypatch.setattr(type(layer.quantizer), "dequantize", lambda *_: pytest.fail("dequantized"))
    assert (layer.weight.dtype, layer.weight.T.shape) == (torch.float32, (64, 64))


def test_without_a_counting_adapter_a_float_weight_is_the_models_own_parameter() -> None:
    model = wrapped()
    own = model.proj.base_layer.weight
    with quantlora.adapters_disabled(model):
        assert model.proj.weight is own
    quantlora.merge(model)
    assert model.proj.weight is model.proj.base_layer.weight


def test_an_embedding_is_read_as_it_is_stored() -> None:
    model = quantlora.wrap(
        nn.Sequential(nn.Embedding(10, 6)), r=2, target_modules=["0"], init_lora_weights=False
    )
    assert torch.equal(model[0](torch.arange(10)), model[0].weight + 0)


WRITES = {
    "in place": lambda w: w.mul_(2),
    "in its data": lambda w: w.data.copy_(w * 2),
    "to its data": lambda w: setattr(w, "data", w * 2),
    "through a slice": lambda w: w.t()[0].zero_(),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_a_computed_weight_is_refused_by_name(write: str) -> None:
    layer = wrapped().proj
    with torch.no_grad(), pytest.raises(AdapterError, match="proj: the model writes to"):
        WRITES[write](layer.weight)


def test_a_write_that_changes_nothing_is_none() -> None:
    with torch.no_grad():
        wrapped().proj.weight.div_(2**0)


def test_memory_that_is_not_there_is_refused_and_copies_have_it() -> None:
    weight = wrapped().proj.weight
    with pytest.raises(AdapterError, match="a kernel wants the memory"):
        weight.data_ptr()
    assert weight.contiguous().data_ptr()
    assert torch.equal(torch.from_numpy(weight.detach().numpy()), weight + 0)
    assert torch.equal(copy.deepcopy(weight.detach()), weight + 0)


def test_a_mixed_batch_cannot_share_a_weight_that_is_read() -> None:
    model = quantlora.wrap(wrapped(), adapter_name="b", r=2, target_modules=["proj"])
    with quantlora.mixed_batch(model, ["default", "b", "__base__"]):
        assert model.proj.weight.dtype == torch.float32
        with pytest.raises(AdapterError, match="proj: the model reads this layer's weight"):
            model(X)


def test_dropout_that_cannot_act_is_named() -> None:
    model = wrapped(lora_dropout=0.5).train()
    with pytest.warns(AdapterWarning, match="proj: the model reads .* lora_dropout"):
        model(X)


def test_an_adapter_changed_between_forward_and_backward_is_an_error() -> None:
    model = wrapped()
    loss = model(X).sum()
    with torch.no_grad():
        model.proj.factors("default")[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_functional_calls_get_the_gradient_of_their_own_parameters() -> None:
    model = wrapped()
    name = "proj.lora_B.default.weight"
    new = (model.get_parameter(name).detach() * 2).requires_grad_()
    torch.func.functional_call(model, {name: new}, X).square().sum().backward()
    twin = called(model)
    other = new.detach().clone().requires_grad_()
    torch.func.functional_call(twin, {name: other}, X).square().sum().backward()
    torch.testing.assert_close(new.grad, other.grad)


def test_other_attributes_of_a_layer_are_read_through_it() -> None:
    model = nn.Sequential(nn.Embedding(10, 6, padding_idx=1), nn.Conv1d(6, 4, 3, padding=2))
    model[1].own = "mine"
    quantlora.wrap(model, r=2, target_modules=["0", "1"])
    assert (model[0].padding_idx, model[0].num_embeddings) == (1, 10)
    assert (model[1].padding, model[1].own) == ((2,), "mine")
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        model[1].nothing_of_that_name  # noqa: B018


@pytest.mark.parametrize("backend", ["auto", "bitsandbytes_4bit"])
def test_the_fast_path_of_torchs_encoder_has_the_adapter(backend: str) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True).eval()
    quantlora.wrap(model, backend=backend, r=4, target_modules=["linear1"], init_lora_weights=False)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x), atol=1e-5, rtol=1e-5)


STATES = {"state_size": 4, "time_step_rank": 4}
JAMBA = {"mamba_dt_rank": 4, "mamba_d_state": 4, "use_mamba_kernels": False, "num_experts": 1}
#: Its cache asks for an attention beside the Mamba layer.
MIXED = {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}

MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "Mamba": ("Mamba", STATES, ["dt_proj", "x_proj"]),
    "FalconMamba": ("FalconMamba", STATES, ["dt_proj", "x_proj"]),
    "Jamba": ("Jamba", {**JAMBA, **HEADS, **MIXED}, ["dt_proj"]),
    "MobileBert": (
        "MobileBert",
        {"embedding_size": 32, "intra_bottleneck_size": 32, "num_attention_heads": 4},
        ["cls.predictions.dense"],
    ),
}
SMALL = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}


def tiny(family: str) -> tuple[nn.Module, list[str]]:
    name, fields, targets = MODELS[family]
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **fields})
    kind = "ForMaskedLM" if name == "MobileBert" else "ForCausalLM"
    torch.manual_seed(0)
    return getattr(transformers, name + kind)(config).double().eval(), targets


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "bitsandbytes_4bit"])
@pytest.mark.parametrize("family", MODELS)
def test_models_that_read_weights_train_and_give_what_they_give_merged(
    family: str, backend: str
) -> None:
    model, targets = tiny(family)
    quantlora.wrap(model, backend=backend, r=4, target_modules=targets, init_lora_weights=False)
    ids = torch.randint(3, 49, (2, 7), generator=torch.Generator().manual_seed(0))
    logits = model(ids).logits
    logits.square().sum().backward()
    layers = [one for one in model.modules() if isinstance(one, LoraLayer)]
    assert all(bool(one.factors("default")[1].weight.grad.any()) for one in layers)
    quantlora.merge_and_unload(model, mode="dequantize")
    torch.testing.assert_close(model(ids).logits, logits, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "bitsandbytes_4bit"])
def test_the_attention_of_wavlm_has_its_adapters(backend: str) -> None:
    """It takes the weights of its projections, and calls none of them."""
    sizes = {**SMALL, "num_attention_heads": 4, "num_conv_pos_embeddings": 16}
    convolutions = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]}
    dropouts = dict.fromkeys(("hidden_dropout", "attention_dropout", "layerdrop"), 0)
    config = transformers.WavLMConfig(**sizes, **convolutions, **dropouts)
    torch.manual_seed(0)
    model = transformers.WavLMForCTC(config).double().eval()
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    quantlora.wrap(model, backend=backend, r=4, target_modules=targets, init_lora_weights=False)
    sound = torch.randn(2, 600, dtype=torch.float64)
    logits = model(sound).logits
    logits.square().sum().backward()
    layers = [one for one in model.modules() if isinstance(one, LoraLayer)]
    assert len(layers) == 4
    assert all(bool(one.factors("default")[1].weight.grad.any()) for one in layers)
    quantlora.merge_and_unload(model, mode="dequantize")
    torch.testing.assert_close(model(sound).logits, logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 24, "vdim": 40}], ids=str)
def test_the_projections_of_torchs_attention_can_be_adapted(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(32, 4, batch_first=True, **sizes))
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if sizes else ["in_proj_weight"]
    plain = copy.deepcopy(model[0])
    fields = {"target_modules": [], "target_parameters": [f"0.{name}" for name in names]}
    quantlora.wrap(model, r=2, init_lora_weights=False, **fields)
    inputs = [torch.randn(2, 5, sizes.get(key, 32)) for key in ("", "kdim", "vdim")]
    for name in names:
        getattr(plain, name).data.copy_(getattr(model[0], name).detach())
    torch.testing.assert_close(model[0](*inputs)[0], plain(*inputs)[0], atol=1e-5, rtol=1e-5)


def test_the_fast_path_of_torchs_encoder_has_the_adapter_of_its_attention() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True).eval()
    parameters = ["self_attn.in_proj_weight"]
    fields = {"target_modules": ["linear1"], "target_parameters": parameters}
    quantlora.wrap(model, r=2, init_lora_weights=False, **fields)
    x = torch.randn(2, 5, 32)
    slow = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), slow, atol=1e-5, rtol=1e-5)
