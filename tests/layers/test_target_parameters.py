"""LoRA on the fused experts of mixtures: PEFT's numbers and files, gradients against float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import peft
import pytest
import torch
from hypothesis import given, settings
from peft import PeftModel
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError, BackendError, ConfigError, MergeError, TargetError
from tests.tools.expert_models import BOTH, MODELS, Experts, mixtral
from tests.tools.peft_oracle import IDS, TOLERANCE, check_logits, pair, relative
from tests.tools.versions import IS_TRANSFORMERS_5

ONLY: dict[str, Any] = {"target_modules": [], "target_parameters": BOTH, "r": 3, "lora_alpha": 5}
#: gpt-oss of Transformers 4 computes its experts otherwise: they share one weight there.
IN_MIXED_BATCHES = [name for name in MODELS if IS_TRANSFORMERS_5 or name != "gpt_oss"]
PLACE = "model.layers.1.mlp.experts"


def wrapped(model: Any = None, **fields: Any) -> Any:
    model = mixtral() if model is None else model
    return quantlora.wrap(model, **{**ONLY, "init_lora_weights": False, **fields}).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"target_modules": ["q_proj"]}])
def test_logits_and_gradients_agree_with_peft(name: str, fields: Any, tmp_path: Path) -> None:
    both = pair(tmp_path, {"default": {**ONLY, **fields}}, MODELS[name]())
    check_logits(both)
    for model in (both.theirs, both.ours):
        model(input_ids=IDS, labels=IDS).loss.backward()
    theirs = {k: p.grad for k, p in both.theirs.named_parameters() if p.requires_grad}
    ours = {k: p.grad for k, p in both.ours.named_parameters() if p.requires_grad}
    assert len(theirs) == len(ours) > 0
    for path in ("model.layers.0.mlp.experts", PLACE):
        for theirs_key, key in (("base_layer.", "gate_up_proj"), ("", "down_proj")):
            for side in ("lora_A", "lora_B"):
                wanted = theirs[f"base_model.model.{path}.{theirs_key}{side}.default.weight"]
                found = ours[f"{path}.{side}.default.{key}.weight"]
                assert relative(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", [BOTH, BOTH[:1], BOTH[1:]])
def test_peft_loads_what_we_save(name: str, targets: list[str], tmp_path: Path) -> None:
    model = MODELS[name]()
    plain = copy.deepcopy(model)
    wrapped(model, target_parameters=targets)
    quantlora.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert relative(logits(model), logits(theirs)) <= TOLERANCE


def test_a_saved_adapter_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = wrapped(target_modules=["q_proj"])
    quantlora.save_adapter(model, tmp_path, "default")
    assert torch.equal(logits(quantlora.load_adapter(mixtral(), tmp_path).eval()), logits(model))


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_float64(transposed: bool) -> None:
    """A module of our own, against the formula written out."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(Experts(transposed))
    quantlora.wrap(model, target_modules=[], target_parameters=["w"], r=2, init_lora_weights=False)
    x = torch.randn(5, 6, requires_grad=True)
    model(x).square().sum().backward()
    A, B = (one["default"]["w"].weight for one in (model[0].lora_A, model[0].lora_B))
    a, b, y = (one.detach().double().requires_grad_() for one in (A, B, x))
    delta = torch.stack([b[:, e::3] @ a[2 * e : 2 * e + 2] for e in range(3)]) * 4
    weight = model[0].base_layer.w.detach().double()
    weight = (weight.transpose(1, 2) if transposed else weight) + delta
    torch.einsum("ni,eoi->eno", y, weight).sum(0).square().sum().backward()
    for found, wanted in ((A, a), (B, b), (x, y)):
        assert found.grad is not None
        assert wanted.grad is not None
        assert relative(found.grad.double(), wanted.grad) <= TOLERANCE


@settings(max_examples=40, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(*[st.integers(1, 5)] * 3), st.tuples(st.integers(1, 5), st.integers(1, 5))
    ),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_any_parameter_gets_the_update_of_its_factors(
    shape: tuple[int, ...], transposed: bool, dtype: torch.dtype, data: Any
) -> None:
    """Read back by a forward that returns the parameter; then merged, and unmerged bit for bit."""
    r = data.draw(st.integers(1, min(shape[-2:])))
    close = (
        {"rtol": 0.02, "atol": 0.02} if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    )
    model = torch.nn.Sequential(Reader(shape, transposed, dtype))
    before = model(None).clone()
    fields: dict[str, Any] = {"target_parameters": ["w"], "target_modules": []}
    quantlora.wrap(model, r=r, lora_alpha=r, init_lora_weights=False, **fields)
    A, B = model[0].adapter_tensors("default").values()
    experts, turned = (shape[0], transposed) if len(shape) == 3 else (1, False)
    each = [B[:, e::experts] @ A[e * r : (e + 1) * r] for e in range(experts)]
    update = torch.stack([one.t() if turned else one for one in each]).reshape(shape).to(dtype)
    assert torch.allclose(model(None), before + update, **close)
    updated = model(None)
    quantlora.merge(model)
    assert torch.allclose(model(None), updated, **close)
    quantlora.unmerge(model)
    quantlora.unload(model)
    assert torch.equal(model(None), before)


class Reader(torch.nn.Module):
    """Gives its parameter away."""

    def __init__(self, shape: tuple[int, ...], transposed: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_transposed = transposed
        self.w = torch.nn.Parameter(torch.randn(shape).to(dtype))

    def forward(self, x: None) -> Tensor:
        return self.w * 1


def kept_for_backward(model: Any) -> list[int]:
    """Bytes of each storage that a forward keeps and that is no parameter's."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(5, 6, requires_grad=True))
    return [size for place, size in kept.items() if place not in own]


def test_no_copy_of_the_experts_is_kept_for_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is no mixture of Transformers: those are in ``tests/experts``."""
    model = wrapped(nn.Sequential(Experts()), target_parameters=["w"])
    size = model[0].base_layer.w.untyped_storage().nbytes()
    assert size not in kept_for_backward(model)

    def once(function: Any, *args: Any, use_reentrant: bool, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    monkeypatch.setattr("quantlora.layers.parameters.checkpoint", once)
    assert size in kept_for_backward(model)


@pytest.mark.parametrize("mode", ["requantize", "dequantize", "keep"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_a_merge_computes_the_same_and_is_undone_bit_for_bit(name: str, mode: str) -> None:
    model = wrapped(MODELS[name]())
    before, base = logits(model), model.get_submodule(PLACE).base_layer
    weights = {key: one.clone() for key, one in base.named_parameters()}
    quantlora.merge(model, mode=mode)
    assert relative(logits(model), before) <= TOLERANCE
    assert model.get_submodule(PLACE).base_layer is not base
    quantlora.unmerge(model)
    assert model.get_submodule(PLACE).base_layer is base
    assert all(torch.equal(one, weights[key]) for key, one in base.named_parameters())
    assert torch.equal(logits(model), before)


def test_merge_and_unload_leaves_a_plain_model() -> None:
    model, plain = wrapped(target_modules=["q_proj"]), mixtral()
    before = logits(model)
    quantlora.merge_and_unload(model)
    assert relative(logits(model), before) <= TOLERANCE
    assert type(model.get_submodule(PLACE)) is type(plain.get_submodule(PLACE))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_merged_model_is_exported(tmp_path: Path) -> None:
    model = wrapped()
    quantlora.export_merged(model, tmp_path / "merged", progress=False)
    again = type(model).from_pretrained(tmp_path / "merged").eval()
    assert relative(logits(again), logits(model)) <= TOLERANCE


def test_several_adapters_are_summed_and_can_be_disabled() -> None:
    model = wrapped()
    one, plain = logits(model), logits(mixtral().eval())
    wrapped(model, adapter_name="second", target_parameters=BOTH[:1], r=2)
    quantlora.set_adapter(model, ["default", "second"])
    experts = model.get_submodule(PLACE)
    total = experts.deltas("default")["gate_up_proj"] + experts.deltas("second")["gate_up_proj"]
    both = logits(model)
    quantlora.merge(model)
    merged = experts.base_layer.gate_up_proj - mixtral().get_submodule(PLACE).gate_up_proj
    assert relative(merged, total) <= TOLERANCE
    assert relative(logits(model), both) <= TOLERANCE
    quantlora.unmerge(model)
    with quantlora.adapters_disabled(model):
        assert torch.equal(logits(model), plain)
    quantlora.delete_adapter(model, "second")
    quantlora.set_adapter(model, "default")
    assert torch.equal(logits(model), one)


def test_adapters_are_saved_apart(tmp_path: Path) -> None:
    """Each file is nested by its own parameters, whatever others the model has."""
    model = wrapped()
    wrapped(model, adapter_name="second", target_parameters=BOTH[:1], r=2)
    wanted = logits(model)
    quantlora.save_adapter(model, tmp_path, "second")
    theirs = PeftModel.from_pretrained(mixtral(), str(tmp_path / "second")).eval()
    assert relative(wanted, logits(theirs)) <= TOLERANCE


def test_training_starts_at_the_base_model() -> None:
    model = quantlora.wrap(mixtral().eval(), **ONLY)
    assert torch.equal(logits(model), logits(mixtral().eval()))
    A = model.get_submodule(PLACE).adapter_tensors("default")["base_layer.lora_A.weight"]
    assert A.requires_grad
    assert A.abs().sum() > 0


def test_all_linear_and_parameters_go_together(tmp_path: Path) -> None:
    """Also for a second adapter, and "all-linear" is written as names that pick no experts."""
    model = wrapped(target_modules="all-linear")
    wrapped(model, adapter_name="second", target_modules="all-linear")
    quantlora.save_adapter(model, tmp_path, "second")
    again = quantlora.load_adapter(mixtral(), tmp_path / "second").eval()
    assert torch.equal(logits(again), logits(model))


def test_explain_shows_the_parameters() -> None:
    shown = quantlora.explain(mixtral(), **ONLY)
    assert shown.ok
    assert {row.path for row in shown.wrapped} == {PLACE, PLACE.replace("1", "0")}
    assert {row.wrapper for row in shown.wrapped} == {"LoraExperts"}


RANKS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "rank_pattern": {r".*\.gate_up_proj": 8},
    "alpha_pattern": {r".*\.down_proj": 3},
    "use_rslora": True,
}


def test_each_parameter_of_a_module_has_the_rank_and_scale_of_its_pattern_as_in_peft(tmp_path):
    names = ["experts.gate_up_proj", "experts.down_proj"]
    fields = {**RANKS, "target_modules": ["q_proj"], "target_parameters": names}
    config = peft.LoraConfig(**fields, init_lora_weights=False)
    theirs = peft.get_peft_model(mixtral(), config).eval()
    theirs.save_pretrained(tmp_path / "peft")
    ours = quantlora.load_adapter(mixtral(), tmp_path / "peft").eval()
    quantlora.save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(mixtral(), tmp_path / "ours").eval()
    wanted = theirs(IDS).logits.detach()
    assert relative(ours(IDS).logits.detach(), wanted) <= TOLERANCE
    assert relative(back(IDS).logits.detach(), wanted) <= TOLERANCE


WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TargetError, "Near names: gate_up_proj", {"target_parameters": ["gate_up_prj"]}),
    (
        TargetError,
        "leave it out of one",
        {"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]},
    ),
    (TargetError, "two or three dim", {"target_parameters": ["input_layernorm.weight"]}),
    (ConfigError, "variant 'dora'", {"use_dora": True}),
    (ConfigError, "lora_bias", {"lora_bias": True}),
    (BackendError, "packs layers only", {"backend": "bitsandbytes_8bit"}),
]


@pytest.mark.parametrize(("error", "message", "fields"), WRONG)
def test_what_cannot_be_is_said(error: type[Exception], message: str, fields: Any) -> None:
    model = mixtral()
    with pytest.raises(error, match=message):
        wrapped(model, **fields)
    assert not any(isinstance(one, quantlora.LoraLayer) for one in model.modules())


@pytest.mark.parametrize("name", IN_MIXED_BATCHES)
def test_each_sample_of_a_mixed_batch_is_as_alone(name: str) -> None:
    model = wrapped(MODELS[name](), target_modules=["q_proj"])
    names = ["default", "__base__"] * 2 + ["default"]
    with torch.no_grad():
        mixed, adapted = model(IDS, adapter_names=names).logits, logits(model)
        with quantlora.adapters_disabled(model):
            plain = logits(model)
    for sample, adapter in enumerate(names):
        alone = plain if adapter == "__base__" else adapted
        assert relative(mixed[sample], alone[sample]) <= TOLERANCE


def test_a_mixed_batch_says_why_it_cannot_be() -> None:
    """Of a parameter in a module that nobody knows: what it does with its rows is not known."""
    model = wrapped(nn.Sequential(Experts()), target_parameters=["w"])
    with (
        quantlora.mixed_batch(model, ["default", "__base__"]),
        pytest.raises(AdapterError, match="in a mixed batch"),
    ):
        model(torch.randn(2, 6))


def test_a_parameter_of_a_module_that_nobody_knows_stays_float() -> None:
    with pytest.raises(BackendError, match="parameters cannot be packed, only layers and the exp"):
        wrapped(nn.Sequential(Experts()), target_parameters=["w"], backend="normalfloat")


def test_dropout_is_for_experts_and_not_for_other_parameters() -> None:
    """It acts on a product's input, which is known of experts only."""
    with pytest.raises(ConfigError, match="lora_dropout"):
        wrapped(nn.Sequential(Experts()), target_parameters=["w"], lora_dropout=0.1)
    model = wrapped(lora_dropout=0.5).train()
    assert not torch.equal(logits(model), logits(model))


def test_peft_loads_an_adapter_that_was_trained_with_dropout(tmp_path: Path) -> None:
    model = wrapped(lora_dropout=0.5)
    with pytest.warns(quantlora.AdapterWarning, match="lora_dropout 0"):
        quantlora.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(mixtral(), str(tmp_path)).eval()
    assert relative(logits(model), logits(theirs)) <= TOLERANCE


def test_combining_and_swapping_say_why_they_cannot_be() -> None:
    model = wrapped()
    with pytest.raises(AdapterError, match="target_parameters"):
        quantlora.add_weighted_adapter(model, ["default"], [0.5], "mean")
    with pytest.raises(AdapterError, match="hot swap"):
        quantlora.prepare_hot_swap(model, r=8)


# -- packed: the experts in 4 bits, by bitsandbytes' own function


def packed() -> Any:
    parametrize = pytest.importorskip("bitsandbytes.nn.parametrize")
    model = mixtral().eval()
    for layer in model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            parametrize.replace_parameter_4bit(layer.mlp.experts, name)
    return model


def unpacked(model: Any) -> Any:
    """A float model with the same values."""
    plain = mixtral().eval()
    for path in (PLACE, PLACE.replace("1", "0")):
        for name in ("gate_up_proj", "down_proj"):
            value = getattr(model.get_submodule(path), name).detach()
            setattr(plain.get_submodule(path), name, torch.nn.Parameter(value))
    return plain


def test_packed_experts_compute_as_their_float_values(tmp_path: Path) -> None:
    model = packed()
    twin = unpacked(model)
    assert relative(logits(model), logits(twin)) <= TOLERANCE
    wrapped(model)
    quantlora.save_adapter(model, tmp_path)
    with pytest.warns(quantlora.AdapterWarning, match="parametrization, now float"):
        quantlora.load_adapter(twin, tmp_path, is_trainable=True)
    assert relative(logits(model), logits(twin)) <= TOLERANCE
    for one in (model, twin):
        one(input_ids=IDS, labels=IDS).loss.backward()
    pairs = zip(quantlora.lora_layers(model), quantlora.lora_layers(twin), strict=True)
    for (_, ours), (_, theirs) in pairs:
        for key, parameter in ours.adapter_tensors("default").items():
            assert (
                relative(parameter.grad, theirs.adapter_tensors("default")[key].grad) <= TOLERANCE
            )


def test_packed_experts_are_merged_into_float_ones_and_back() -> None:
    model = wrapped(packed())
    before = logits(model)
    with pytest.raises(MergeError, match='mode="dequantize"'):
        quantlora.merge(model)
    quantlora.merge(model, mode="dequantize")
    assert relative(logits(model), before) <= TOLERANCE
    quantlora.unmerge(model)
    assert torch.equal(logits(model), before)
    quantlora.merge_and_unload(model, mode="dequantize")
    assert model.state_dict().keys() == mixtral().state_dict().keys()
    assert relative(logits(model), before) <= TOLERANCE


@pytest.mark.parametrize("rslora", [False, True])
def test_an_alpha_of_zero_leaves_the_output_as_it_is(rslora: bool) -> None:
    model = nn.Sequential(nn.MultiheadAttention(16, 2)).double()
    x = torch.randn(3, 2, 16, dtype=torch.float64)
    wanted = model[0](x, x, x)[0]
    fields = {"target_modules": [], "target_parameters": ["in_proj_weight"]}
    quantlora.wrap(model, **fields, lora_alpha=0, use_rslora=rslora, init_lora_weights=False)
    assert torch.equal(model[0](x, x, x)[0], wanted)


def test_an_alpha_of_zero_for_the_first_parameter_alone_is_refused() -> None:
    model = nn.Module()
    model.one, model.two = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    fields = {
        "target_modules": [],
        "target_parameters": ["one", "two"],
        "alpha_pattern": {"one": 0},
    }
    with pytest.raises(ConfigError, match="lora_alpha is 0 for one and is not for other"):
        quantlora.wrap(nn.ModuleDict({"m": model}), r=2, **fields)
