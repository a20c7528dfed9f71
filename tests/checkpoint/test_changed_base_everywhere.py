"""A changed base is seen by every way on which an adapter's values come to a model."""

import warnings

import pytest
import torch

import quantlora
from quantlora import AdapterFileError, AdapterWarning
from tests.checkpoint.test_changed_base import CHANGING, base, trained, x


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
