"""quantlora.json: what an adapter was trained on, and what is said when the base differs."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import quantlora
from quantlora import AdapterWarning


@pytest.fixture
def saved(make_wrapped, tmp_path):
    return quantlora.save_adapter(make_wrapped(), tmp_path)


def change_note(folder, change):
    note = json.loads((folder / "quantlora.json").read_text())
    change(note)
    (folder / "quantlora.json").write_text(json.dumps(note))


def test_note_names_format_layers_version_and_base(saved):
    note = json.loads((saved / "quantlora.json").read_text())
    (float_layers,) = note["formats"]
    assert float_layers["quantizer"] == "float"
    assert len(float_layers["layers"]) == 14
    assert note["quantlora"] == quantlora.__version__
    assert note["base"]["class"] == "LlamaForCausalLM"


def test_same_base_gives_no_warning(saved, make_base):
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.load_adapter(make_base(), saved)


def test_same_base_in_another_dtype_gives_no_warning(make_wrapped, make_base, tmp_path):
    rounded = make_base().bfloat16().float()
    quantlora.save_adapter(quantlora.wrap(rounded, r=4), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        quantlora.load_adapter(make_base().bfloat16(), tmp_path)


def test_base_with_other_norms_is_warned_about(saved, make_base):
    other = make_base()
    with torch.no_grad():
        other.model.norm.weight += 0.1
    with pytest.warns(AdapterWarning, match="its norms have other values") as caught:
        quantlora.load_adapter(other, saved)
    assert caught[0].filename == __file__


def test_other_format_is_named_with_its_layers(saved, make_base):
    change_note(saved, lambda note: note["formats"][0].update(quantizer="gptq", bits=4))
    words = r"gptq with 4 bits, now float \(14 layers, model\.layers\.0\.self_attn\.q_proj first\)"
    with pytest.warns(AdapterWarning, match=words):
        quantlora.load_adapter(make_base(), saved)


def test_other_group_size_is_named(saved, make_base):
    change_note(saved, lambda note: note["formats"][0].update(group_size=64))
    with pytest.warns(AdapterWarning, match="group_size was 64, is None"):
        quantlora.load_adapter(make_base(), saved)


@pytest.mark.parametrize("text", ["{", "[1]", '{"formats": [{}]}', '{"base": 3}', "\x00"])
def test_note_that_cannot_be_read_is_ignored_with_a_warning(saved, make_base, text):
    (saved / "quantlora.json").write_text(text)
    with pytest.warns(AdapterWarning, match="ignored"):
        quantlora.load_adapter(make_base(), saved)


def test_adapter_without_a_note_loads(saved, make_base):
    (saved / "quantlora.json").unlink()
    quantlora.load_adapter(make_base(), saved)
