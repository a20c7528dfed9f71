"""Adapters whose initializer has changed the base: the file fits the original one, or says so."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

import quantlora
from quantlora import AdapterFileError, AdapterWarning, ConfigError, Initializer, linear_from

#: Fields that change ranks and scalings.
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"2": 2}, "alpha_pattern": {"0": 16}},
    "dora": {"use_dora": True},
}
CHANGING = ("pissa", "olora")


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8))


def trained(init="pissa", net=None, name="default", **fields):
    net = quantlora.wrap(
        base() if net is None else net, r=4, init_lora_weights=init, adapter_name=name, **fields
    )
    with torch.no_grad():
        for _, layer in quantlora.lora_layers(net):
            layer.lora_B[name].weight.mul_(2)
            layer.lora_A[name].weight.add_(0.01)
    return net


def x():
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(1))


def changed_base(net):
    return quantlora.unload(copy.deepcopy(net))


def fields_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", CHANGING)
def test_the_file_fits_the_original_base(init, kind, tmp_path):
    net = trained(init, **KINDS[kind])
    quantlora.save_adapter(net, tmp_path, convert=True)
    again = quantlora.load_adapter(base(), tmp_path)
    torch.testing.assert_close(again(x()), net(x()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", CHANGING)
def test_peft_reads_it_with_equal_outputs(init, kind, tmp_path):
    peft = pytest.importorskip("peft")
    net = trained(init, **KINDS[kind])
    quantlora.save_adapter(net, tmp_path, convert=True)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(theirs(x()), net(x()), atol=1e-5, rtol=1e-4)


def test_peft_converts_to_the_same_tensors(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["0", "2"], init_lora_weights="olora")
    theirs = peft.get_peft_model(base(), config)
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "first")
    theirs.peft_config["default"].init_lora_weights = "olora"
    with torch.no_grad():
        theirs.base_model.model[0].lora_B["default"].weight.mul_(2)
    theirs.save_pretrained(
        tmp_path / "peft", path_initial_model_for_weight_conversion=tmp_path / "first"
    )
    wanted = theirs(x())
    again = quantlora.load_adapter(base(), tmp_path / "peft")
    torch.testing.assert_close(again(x()), wanted, atol=1e-5, rtol=1e-4)


def test_without_a_word_a_float_base_is_converted_for(tmp_path):
    quantlora.save_adapter(trained(), tmp_path)
    assert fields_of(tmp_path)["r"] == 8
    assert fields_of(tmp_path)["init_lora_weights"] is True


@pytest.mark.parametrize("convert", [True, False])
def test_on_the_changed_base_either_file_is_the_adapter_itself(convert, tmp_path):
    net = trained(use_rslora=True, alpha_pattern={"2": 3})
    quantlora.save_adapter(net, tmp_path, convert=convert)
    again = quantlora.load_adapter(changed_base(net), tmp_path)
    assert torch.equal(again(x()), net(x()))
    assert again[0].r["default"] == 4


def test_an_unconverted_file_is_refused_on_the_original_base(tmp_path):
    quantlora.save_adapter(trained(), tmp_path, convert=False)
    net = base()
    with pytest.raises(AdapterFileError, match=r"'pissa' has changed.*convert=True"):
        quantlora.load_adapter(net, tmp_path)
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bases_are_told_apart_in_half_precision(dtype, tmp_path):
    net = trained()
    quantlora.save_adapter(net, tmp_path, convert=False)
    with pytest.raises(AdapterFileError, match="'pissa' has changed"):
        quantlora.load_adapter(base().to(dtype), tmp_path)
    quantlora.load_adapter(changed_base(net).to(dtype), tmp_path)


def test_peft_takes_the_same_part_out_again_for_an_unconverted_file(tmp_path):
    peft = pytest.importorskip("peft")
    net = trained()
    quantlora.save_adapter(net, tmp_path, convert=False)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(theirs(x()), net(x()), atol=1e-4, rtol=1e-3)


def test_a_second_adapter_on_the_changed_base_is_converted_too(tmp_path):
    net = trained()
    trained("gaussian", net, "second", lora_alpha=3)
    quantlora.set_adapter(net, "second")
    quantlora.save_adapter(net, tmp_path, "second")
    again = quantlora.load_adapter(base(), tmp_path, "second")
    torch.testing.assert_close(again(x()), net(x()), atol=1e-5, rtol=1e-4)


def test_an_adapter_loaded_and_trained_on_still_converts(tmp_path):
    net = trained()
    quantlora.save_adapter(net, tmp_path / "first")
    again = quantlora.load_adapter(changed_base(net), tmp_path / "first", is_trainable=True)
    again[0].lora_B["default"].weight.data.mul_(-1)
    quantlora.save_adapter(again, tmp_path / "second")
    last = quantlora.load_adapter(base(), tmp_path / "second")
    torch.testing.assert_close(last(x()), again(x()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("init", ["loftq", "pissa", "olora"])
def test_a_base_that_was_packed_again_is_not_converted_for_without_a_word(init, tmp_path):
    options = {"loftq_bits": 4, "loftq_iter": 5} if init == "loftq" else None
    net = trained(init, backend="normalfloat", loftq_config=options)
    with pytest.warns(AdapterWarning, match="fits the changed base and no other"):
        quantlora.save_adapter(net, tmp_path)
    again = quantlora.load_adapter(changed_base(net), tmp_path)
    assert torch.equal(again(x()), net(x()))
    plain = quantlora.unload(quantlora.wrap(base(), backend="normalfloat"))
    with pytest.raises(AdapterFileError, match="has changed"):
        quantlora.load_adapter(plain, tmp_path)


def test_converted_for_a_packed_base_it_is_as_near_as_the_packing(tmp_path):
    net = trained(backend="normalfloat")
    with pytest.warns(AdapterWarning, match="evaluate it"):
        quantlora.save_adapter(net, tmp_path, convert=True)
    again = quantlora.load_adapter(base(), tmp_path, backend="normalfloat")
    assert (again(x()) - net(x())).norm() < 0.2 * net(x()).norm()


def test_an_adapter_that_leaves_the_base_is_saved_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantlora.save_adapter(trained(True), tmp_path, convert=True)
    assert "base_change" not in json.loads((tmp_path / "quantlora.json").read_text())


class _Doubling(Initializer):
    name = "doubling"

    def initialize(self, layer, context):
        layer.base_layer = linear_from(2 * layer.base_layer.weight, layer.base_layer.bias)


class _Declared(_Doubling):
    changes_base = True


class _InPlace(Initializer):
    name = "in_place"

    def __init__(self, change):
        self.change = change

    def initialize(self, layer, context):
        self.change(layer.base_layer.weight)


def with_initializer(monkeypatch, one):
    monkeypatch.setitem(quantlora.registry().initializers, one.name, one)


def test_an_undeclared_change_is_refused(monkeypatch):
    with_initializer(monkeypatch, _Doubling())
    net = base()
    with pytest.raises(ConfigError, match=r"'doubling' has put another base.*changes_base"):
        quantlora.wrap(net, r=4, init_lora_weights="doubling")
    assert type(net[0]) is nn.Linear


IN_PLACE = {
    "detach": lambda weight: weight.detach().mul_(2),
    "data": lambda weight: weight.data.mul_(2),
    "other data": lambda weight: setattr(weight, "data", 2 * weight.data),
    "numpy": lambda weight: weight.detach().numpy().__imul__(2),
    "rolled": lambda weight: weight.data.copy_(weight.detach().roll(1, 0)),
    "last element": lambda weight: weight.data[-1].__setitem__(-1, 7),
}


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_change_in_place_is_refused(change, monkeypatch):
    with_initializer(monkeypatch, _InPlace(IN_PLACE[change]))
    with pytest.raises(ConfigError, match="in place"):
        quantlora.wrap(base(), r=4, init_lora_weights="in_place")


def test_a_change_that_the_adapter_does_not_make_up_for_cannot_be_converted(monkeypatch, tmp_path):
    with_initializer(monkeypatch, _Declared())
    net = quantlora.wrap(base(), r=4, init_lora_weights="doubling")
    with pytest.raises(AdapterFileError, match="cannot be converted"):
        quantlora.save_adapter(net, tmp_path, convert=True)
    quantlora.save_adapter(net, tmp_path, convert=False)
    with pytest.raises(AdapterFileError, match="'doubling' has changed"):
        quantlora.load_adapter(base(), tmp_path)


@pytest.mark.parametrize("value", [[], {}, {"fits": "x"}, {"fits": "original", "layers": 3}, "a"])
def test_a_damaged_note_is_ignored_with_a_word(value, tmp_path):
    quantlora.save_adapter(trained(), tmp_path)
    note = json.loads((tmp_path / "quantlora.json").read_text()) | {"base_change": value or [1]}
    (tmp_path / "quantlora.json").write_text(json.dumps(note))
    with pytest.warns(AdapterWarning, match="cannot be read and is ignored"):
        quantlora.load_adapter(base(), tmp_path)
