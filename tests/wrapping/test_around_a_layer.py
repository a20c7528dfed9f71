"""What stands around a layer is kept by `wrap`, `merge` and `unload`, or refused by name."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import quantlora
from quantlora.errors import AdapterWarning, LayerError
from quantlora.layers.layer import LoraLayer

BACKENDS = ["auto", "bitsandbytes_4bit", "normalfloat"]
X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


def net(change: Callable[[nn.Module], Any], kind: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(proj=kind(64, 64)))
    change(model[0])
    return model


def wrapped(model: nn.Module, backend: str = "auto", **fields: Any) -> nn.Module:
    given = {"r": 2, "target_modules": ["proj"], **fields}
    return quantlora.wrap(model, backend=backend, **given)


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda one: one.register_forward_hook(lambda m, i, o: o * 2),
    "forward with kwargs": lambda one: one.register_forward_hook(
        lambda m, i, k, o: o * 2, with_kwargs=True
    ),
    "before": lambda one: one.register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
    "before with kwargs": lambda one: one.register_forward_pre_hook(
        lambda m, i, k: ((i[0] + 1,), k), with_kwargs=True
    ),
    "first of two": lambda one: (
        one.register_forward_hook(lambda m, i, o: o + 1),
        one.register_forward_hook(lambda m, i, o: o * 2, prepend=True),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_act_on_the_layer_with_its_adapters(name: str, backend: str) -> None:
    plain = wrapped(net(lambda one: None), backend, init_lora_weights=False)
    model = wrapped(net(HOOKS[name]), backend, init_lora_weights=False)
    HOOKS[name](plain[0])
    assert torch.equal(model(X), plain(X))


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_are_there_after_a_merge_and_after_unload(name: str) -> None:
    model = wrapped(net(HOOKS[name]), init_lora_weights=False)
    wanted = model(X)
    quantlora.merge(model)
    torch.testing.assert_close(model(X), wanted)
    quantlora.unload(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(X), wanted)


def test_unload_without_a_merge_gives_the_layer_its_hooks_back() -> None:
    model = net(HOOKS["forward"])
    wanted = model(X)
    quantlora.unload(wrapped(model, init_lora_weights=False))
    assert torch.equal(model(X), wanted)


def test_a_handle_from_before_wrap_still_removes_its_hook() -> None:
    handles: list[Any] = []
    model = net(lambda one: handles.append(HOOKS["forward"](one)))
    twice = wrapped(model)(X)
    handles[0].remove()
    assert torch.equal(model(X) * 2, twice)


def test_a_hook_of_the_wrapped_layer_goes_to_the_plain_one() -> None:
    model = wrapped(net(lambda one: None))
    once = model(X)
    handle = model[0].register_forward_hook(lambda m, i, o: o * 2)
    quantlora.unload(model)
    assert torch.equal(model(X), once * 2)
    handle.remove()
    assert torch.equal(model(X), once)


def test_a_second_adapter_of_another_variant_keeps_the_hooks() -> None:
    model = wrapped(net(HOOKS["forward"]))
    wanted = model(X)
    wrapped(model, adapter_name="b", use_dora=True)
    torch.testing.assert_close(model(X), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_hooks_see_the_gradient_of_the_layer(backend: str) -> None:
    seen: list[Tensor] = []
    model = net(lambda one: one.register_full_backward_hook(lambda m, i, o: seen.append(o[0])))
    x = X.clone().requires_grad_()
    wrapped(model, backend, init_lora_weights=False)(x).sum().backward()
    assert torch.equal(seen[0], torch.ones(4, 64))


def test_state_dict_hooks_run_before_and_after_a_merge() -> None:
    def note(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
        state[f"{prefix}note"] = torch.ones(1)

    model = wrapped(net(lambda one: one.register_state_dict_post_hook(note)))
    assert "proj.base_layer.note" in model.state_dict()
    quantlora.merge_and_unload(model)
    assert "proj.note" in model.state_dict()


def test_a_failed_wrap_leaves_the_hooks_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(HOOKS["forward"])
    wanted, hooks = model(X), model[0]._forward_hooks
    monkeypatch.setattr(nn.Sequential, "set_submodule", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wrapped(model)
    assert model[0]._forward_hooks is hooks
    assert torch.equal(model(X), wanted)


COMPUTED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "weight_norm": (torch.nn.utils.weight_norm, "WeightNorm"),
    "spectral_norm": (torch.nn.utils.spectral_norm, "SpectralNorm"),
    "prune": (lambda one: prune.l1_unstructured(one, "weight", 0.5), "L1Unstructured"),
    "pruned bias": (lambda one: prune.l1_unstructured(one, "bias", 0.5), "L1Unstructured"),
    "new spectral_norm": (parametrizations.spectral_norm, "changes each time it is read"),
    "own forward": (
        lambda one: setattr(one, "forward", lambda x: type(one).forward(one, x) * 3),
        "its forward is one of its own",
    ),
}
old_style = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


@old_style
@pytest.mark.parametrize("how", [{"backend": "bitsandbytes_4bit"}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("name", COMPUTED)
def test_what_would_be_passed_by_is_refused_by_name(name: str, how: dict[str, Any]) -> None:
    model = net(COMPUTED[name][0])
    before, wanted = vars(model[0]).copy(), model.eval()(X)
    with pytest.raises(LayerError, match=f"^proj: .*{COMPUTED[name][1]}"):
        wrapped(model, **how)
    assert vars(model[0]).keys() == before.keys()
    assert torch.equal(model(X), wanted)


@old_style
@pytest.mark.parametrize("name", COMPUTED)
def test_a_float_layer_keeps_what_computes_its_output(name: str) -> None:
    model = net(COMPUTED[name][0])
    with torch.no_grad():
        for parameter in model.parameters():  # as after load_state_dict
            parameter.mul_(2)
    wanted = model.eval()(X)
    wrapped(model)
    torch.testing.assert_close(model(X), wanted)
    quantlora.unload(model)
    torch.testing.assert_close(model(X), wanted)
    wrapped(model).train()(X).sum().backward()
    assert model[0].factors("default")[1].weight.grad.any()


@old_style
@pytest.mark.parametrize("name", [name for name in COMPUTED if name != "own forward"])
def test_a_computed_weight_is_merged_as_it_is_computed(name: str) -> None:
    model = wrapped(net(COMPUTED[name][0]), init_lora_weights=False).eval()
    wanted = model(X)
    quantlora.merge_and_unload(model)
    torch.testing.assert_close(model(X), wanted)


def test_a_forward_of_its_own_cannot_be_merged() -> None:
    model = wrapped(net(COMPUTED["own forward"][0]))
    with pytest.raises(quantlora.MergeError, match="proj: the layer has a forward of its own"):
        quantlora.merge(model)


def test_a_parametrization_that_always_gives_the_same_is_kept() -> None:
    model = net(parametrizations.weight_norm)
    wanted = model(X)
    wrapped(model)
    torch.testing.assert_close(model(X), wanted)
    quantlora.unload(model)
    assert parametrize.is_parametrized(model[0])


class Clamping(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-6e4, 6e4)


class Dropping(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(super().forward(input), 0.01, self.training)


class Keyword(nn.Linear):
    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(input) * scale


class Mending(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).nan_to_num()


class Router(nn.Linear):
    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(input)
        return y.sigmoid(), y


class Doubling(nn.Linear):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) * 2


OTHERS = [Clamping, Dropping, Keyword, Mending, Router, Doubling]


@pytest.mark.parametrize("kind", OTHERS)
def test_a_subclass_that_does_more_is_refused(kind: type[nn.Linear]) -> None:
    with pytest.raises(LayerError, match=kind.__name__):
        wrapped(net(lambda one: None, kind))


@pytest.mark.parametrize("kind", OTHERS)
def test_all_linear_leaves_out_a_subclass_that_does_more_and_says_so(kind: type[nn.Linear]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), kind(8, 8))
    with pytest.warns(
        AdapterWarning, match=f'"all-linear" leaves out 1: the forward of {kind.__name__}'
    ):
        quantlora.wrap(model, r=2)
    assert type(model[1]) is kind


def test_trying_a_subclass_leaves_modes_and_random_numbers() -> None:
    model, state = net(lambda one: one.eval(), Dropping), torch.get_rng_state()
    with pytest.raises(LayerError):
        wrapped(model)
    assert not model[0].training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_subclass_of_a_packed_layer_that_does_more_is_refused() -> None:
    import bitsandbytes as bnb

    class ClampingPacked(bnb.nn.Linear4bit):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-1, 1)

    layer = ClampingPacked(64, 64)
    layer.weight = bnb.nn.Params4bit(torch.randn(64, 64), requires_grad=False)
    with pytest.raises(LayerError, match=r"^proj: its forward is .*ClampingPacked"):
        wrapped(nn.Sequential(OrderedDict(proj=layer.to("cpu"))))


def test_the_input_may_come_by_keyword_and_nothing_else_may() -> None:
    model = wrapped(net(lambda one: None))
    assert torch.equal(model[0](input=X), model[0](X))
    with pytest.raises(LayerError, match=r"proj: a linear layer .* got scale"):
        model[0](X, scale=2.0)


def test_a_rank_beyond_the_layer_works_and_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 1), nn.Linear(1, 32))
    with pytest.warns(AdapterWarning, match=r"0, 1: the rank is larger .*0: rank 8, layer 1 x 32"):
        quantlora.wrap(model, r=8, init_lora_weights=False)
    x = torch.randn(3, 32)
    y = model(x)
    quantlora.merge_and_unload(model)
    torch.testing.assert_close(model(x), y)


def test_factors_taken_from_a_weight_have_no_more_rank_than_it() -> None:
    with pytest.raises(quantlora.ConfigError, match="'pissa' takes A and B from its weight"):
        quantlora.wrap(nn.Sequential(nn.Linear(32, 1)), r=8, init_lora_weights="pissa")


def test_a_file_with_a_rank_beyond_the_layer_loads(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(32, 1))
    plain = copy.deepcopy(model)
    with pytest.warns(AdapterWarning):
        quantlora.wrap(model, r=8, init_lora_weights=False)
    quantlora.save_adapter(model, tmp_path)
    x = torch.randn(3, 32)
    assert torch.equal(quantlora.load_adapter(plain, tmp_path)(x), model(x))


def test_explain_says_why_a_router_gets_no_adapter() -> None:
    rows = quantlora.explain(nn.Sequential(nn.Linear(8, 8), Router(8, 8)), r=2).rows
    assert [(row.wrapper, row.reason) for row in rows] == [
        ("LoraLinear", ""),
        ("", "the forward of Router does more than a linear layer's product"),
    ]


@pytest.mark.parametrize("backend", ["auto", "bitsandbytes_4bit", "normalfloat"])
def test_all_linear_leaves_out_the_linear_layers_of_i_bert(backend: str) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.IBertConfig(vocab_size=32, intermediate_size=64, **sizes)
    model = transformers.IBertForMaskedLM(config)
    with pytest.warns(AdapterWarning, match="leaves out ibert.*QuantLinear"):
        quantlora.wrap(model, backend=backend, r=2)
    assert isinstance(model.lm_head.dense, LoraLayer)
    assert not isinstance(model.ibert.encoder.layer[0].attention.self.query, LoraLayer)
