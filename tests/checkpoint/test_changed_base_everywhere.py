"""A changed base is seen by every way on which an adapter's values come to a model."""

import warnings

import pytest
import torch
from torch import nn

import quantlora
from quantlora import AdapterFileError, AdapterWarning
from tests.checkpoint.test_changed_base import CHANGING, base, changed_base, trained, x


@pytest.mark.parametrize("init", CHANGING)
def test_a_hot_swap_refuses_the_file_of_a_changed_base(init, tmp_path):
    quantlora.save_adapter(trained(init), tmp_path, convert=False)
    net = quantlora.wrap(base(), r=8)
    with pytest.raises(AdapterFileError, match="has changed"):
        quantlora.hot_swap(net, tmp_path)
    assert torch.equal(net(x()), base()(x()))


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"lora_alpha": 3}])
@pytest.mark.parametrize("init", CHANGING)
def test_a_converted_file_is_swapped_into_a_changed_base(init, fields, tmp_path):
    net = trained(init, **fields)
    quantlora.save_adapter(net, tmp_path / "first", convert=True)
    slot = trained(init, **fields)
    slot[0].lora_B["default"].weight.data.mul_(3)
    quantlora.hot_swap(slot, tmp_path / "first")
    torch.testing.assert_close(slot(x()), net(x()), atol=1e-5, rtol=1e-4)
    quantlora.save_adapter(slot, tmp_path / "second")
    again = quantlora.load_adapter(base(), tmp_path / "second")
    torch.testing.assert_close(again(x()), net(x()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("load", [quantlora.load_adapter, quantlora.hot_swap])
def test_a_file_that_knows_no_change_is_told_of_the_changed_base(load, tmp_path):
    quantlora.save_adapter(trained("gaussian"), tmp_path)
    name = "default" if load is quantlora.hot_swap else "second"
    with pytest.warns(AdapterWarning, match="'pissa' of adapter 'default' has changed it here"):
        load(trained(), tmp_path, name)


@pytest.mark.parametrize("alpha", [4, 3])
@pytest.mark.parametrize("init", [*CHANGING, "pissa_niter_2"])
def test_peft_takes_out_the_same_part_or_stops(init, alpha, tmp_path):
    peft = pytest.importorskip("peft")
    net = trained(init, lora_alpha=alpha)
    quantlora.save_adapter(net, tmp_path, convert=False)
    if init == "pissa" or (init == "olora" and alpha == 4):
        theirs = peft.PeftModel.from_pretrained(base(), tmp_path)
        torch.testing.assert_close(theirs(x()), net(x()), atol=1e-4, rtol=1e-3)
    else:
        with pytest.raises(ValueError, match="of default"):
            peft.PeftModel.from_pretrained(base(), tmp_path)


def test_no_word_where_the_bases_are_the_same(tmp_path):
    quantlora.save_adapter(trained(), tmp_path, convert=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.hot_swap(trained(), tmp_path)


#: Every format of the repository that packs, in all its bits.
REPACKED = [
    ("bitsandbytes_4bit", {"quant_type": "nf4"}),
    ("bitsandbytes_4bit", {"quant_type": "fp4"}),
    ("bitsandbytes_8bit", {}),
    *(("normalfloat", {"quant_type": "nf", "bits": bits}) for bits in (2, 3, 4, 8)),
    *(("normalfloat", {"quant_type": "uniform", "bits": bits}) for bits in (2, 3, 4, 8)),
    *(
        pytest.param("gptq", {"bits": bits}, marks=pytest.mark.slow)  # to import GPTQModel is
        for bits in (2, 3, 4, 8)
    ),
]


def deep(seed, scale=1.0):
    torch.manual_seed(seed)
    net = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)))
    with torch.no_grad():
        for layer in net:
            layer.weight.mul_(scale)
    return net


@pytest.mark.parametrize(("backend", "options"), REPACKED, ids=str)
def test_the_changed_base_packed_in_any_format_is_no_strange_one(backend, options, tmp_path):
    if backend == "gptq":
        pytest.importorskip("gptqmodel")
    net = trained("pissa", deep(0))
    quantlora.save_adapter(net, tmp_path, convert=False)
    plain = changed_base(net)
    packed = quantlora.quantize(plain, backend=backend, quantize_options=options)
    quantlora.load_adapter(packed, tmp_path)
    assert len(dict(quantlora.lora_layers(packed))) == 4


@pytest.mark.parametrize(("seed", "scale"), [(1, 0.3), (2, 1.0), (3, 1.0), (4, 3.0)])
def test_another_base_of_any_size_is_a_strange_one(seed, scale, tmp_path):
    quantlora.save_adapter(trained("pissa", deep(0)), tmp_path, convert=False)
    with pytest.raises(AdapterFileError, match="neither that one nor the original one"):
        quantlora.load_adapter(deep(seed, scale), tmp_path)
