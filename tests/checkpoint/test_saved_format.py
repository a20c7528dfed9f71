"""``backend="saved"``: the base gets the format that the adapter was trained on."""

from __future__ import annotations

import json

import pytest
import torch

import quantlora
from quantlora.errors import AdapterFileError
from quantlora.testing.models import tiny_llama

FORMATS = {
    "nf4": ("bitsandbytes_4bit", {}),
    "fp4": ("bitsandbytes_4bit", {"quant_type": "fp4", "blocksize": 128}),
    "int8": ("bitsandbytes_8bit", {}),
    "mixed": ("normalfloat", {"bits": 2, "bits_pattern": {".*q_proj": 4}}),
    "uniform": ("normalfloat", {"bits": 3, "quant_type": "uniform", "block_size": 32}),
}
IDS = torch.tensor([[1, 5, 6, 7]])


def trained(folder, backend, options):
    """An adapter that does something, saved; with its model's logits."""
    if backend.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    model = quantlora.wrap(tiny_llama(), r=4, backend=backend, quantize_options=options)
    for _, layer in quantlora.lora_layers(model):
        layer.lora_B["default"].weight.data.normal_(std=0.05)
    quantlora.save_adapter(model, folder)
    return model.eval()(IDS).logits.detach()


@pytest.mark.parametrize("name", FORMATS)
def test_a_float_model_gets_the_format_of_training_to_the_last_bit(tmp_path, name, recwarn):
    wanted = trained(tmp_path / "a", *FORMATS[name])
    fresh = quantlora.load_adapter(tiny_llama(), tmp_path / "a", backend="saved")
    assert torch.equal(fresh(IDS).logits, wanted)
    assert not [w for w in recwarn if issubclass(w.category, quantlora.AdapterWarning)]


def test_a_float_base_stays_float(tmp_path):
    wanted = trained(tmp_path / "a", "float", {})
    fresh = quantlora.load_adapter(tiny_llama(), tmp_path / "a", backend="saved")
    assert torch.equal(fresh(IDS).logits, wanted)


def test_a_model_that_is_packed_already_stays_as_it_is(tmp_path):
    wanted = trained(tmp_path / "a", "normalfloat", {"bits": 3})
    fresh = quantlora.quantize(tiny_llama(), backend="normalfloat", quantize_options={"bits": 3})
    quantlora.load_adapter(fresh, tmp_path / "a", backend="saved")
    assert torch.equal(fresh(IDS).logits, wanted)


def test_a_file_without_a_note_asks_for_the_format(tmp_path):
    trained(tmp_path / "a", "normalfloat", {})
    (tmp_path / "a" / "quantlora.json").unlink()
    with pytest.raises(AdapterFileError, match="do not say in which format the base was"):
        quantlora.load_adapter(tiny_llama(), tmp_path / "a", backend="saved")


def test_a_note_of_an_impossible_setting_leaves_the_model_as_it_was(tmp_path):
    trained(tmp_path / "a", "normalfloat", {})
    note = json.loads((tmp_path / "a" / "quantlora.json").read_text())
    note["formats"][0]["block_size"] = -3
    (tmp_path / "a" / "quantlora.json").write_text(json.dumps(note))
    model = tiny_llama()
    with pytest.raises(quantlora.BackendError, match="block_size"):
        quantlora.load_adapter(model, tmp_path / "a", backend="saved")
    assert all(type(m) is torch.nn.Linear for n, m in model.named_modules() if "q_proj" in n)


def test_a_folder_of_several_adapters_names_them(tmp_path):
    for name in ("first", "second"):
        quantlora.save_adapter(quantlora.wrap(tiny_llama(), r=2), tmp_path / name)
    with pytest.raises(AdapterFileError, match="Its sub-folders hold first, second"):
        quantlora.load_adapter(tiny_llama(), tmp_path, backend="saved")
