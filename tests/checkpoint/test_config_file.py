"""adapter_config.json, as PEFT writes it."""

from __future__ import annotations

import json
import warnings

import pytest

import quantlora
from quantlora import AdapterWarning

#: The fields that every PEFT and vLLM know.
KEYS = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
]


@pytest.fixture
def written(make_wrapped, tmp_path):
    """The config file's text for an adapter made with some fields."""

    def write(**fields):
        quantlora.save_adapter(make_wrapped(**fields), tmp_path)
        return (tmp_path / "adapter_config.json").read_text()

    return write


def test_file_has_sorted_keys_and_two_spaces_as_peft_s(written):
    text = written()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True)
    assert list(json.loads(text)) == KEYS


def test_patterns_that_overlap_mean_the_same_when_their_keys_are_sorted(
    make_wrapped, tmp_path, peft
):
    fields = {"alpha_pattern": {"q_proj": 32, ".*": 4}, "rank_pattern": {"v_proj": 2, ".*": 3}}
    model = make_wrapped(init_lora_weights=False, **fields)
    quantlora.save_adapter(model, tmp_path)
    config = peft.LoraConfig.from_pretrained(tmp_path)
    for path, layer in quantlora.lora_layers(model):
        key = peft.utils.other.get_pattern_key(config.alpha_pattern, path)
        assert config.alpha_pattern.get(key, config.lora_alpha) == layer.lora_alpha["default"]
        assert layer.r["default"] == (2 if "v_proj" in path else 3)


def test_newer_fields_are_written_only_where_used(written):
    assert json.loads(written(lora_bias=True))["lora_bias"] is True
    assert "use_qalora" not in json.loads(written())


def test_saved_adapter_is_ready_for_inference_whatever_its_start(written):
    fields = json.loads(written(init_lora_weights="gaussian"))
    assert fields["inference_mode"] is True
    assert fields["init_lora_weights"] is True


def test_our_fields_are_fields_of_peft_s_config(written, peft):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peft.LoraConfig.from_peft_type(**json.loads(written()))


def test_all_linear_is_written_as_names(written):
    names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert json.loads(written())["target_modules"] == names


def test_regular_expression_is_written_as_it_is(written):
    assert json.loads(written(target_modules=r".*q_proj"))["target_modules"] == ".*q_proj"


def test_base_model_s_name_is_written(make_wrapped, tmp_path):
    model = make_wrapped()
    model.name_or_path = "org/model"
    quantlora.save_adapter(model, tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "org/model"


def test_minimal_config_loads(written, make_base, tmp_path):
    fields = json.loads(written())
    minimal = {name: fields[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(minimal))
    quantlora.load_adapter(make_base(), tmp_path)


def test_unknown_fields_are_named_in_one_warning(written, make_base, tmp_path):
    fields = json.loads(written()) | {"brand_new": 1, "newer": "x", "unset": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.warns(AdapterWarning) as caught:
        quantlora.load_adapter(make_base(), tmp_path)
    assert len(caught) == 1
    assert "brand_new, newer." in str(caught[0].message)
    assert caught[0].filename == __file__


def test_start_that_changes_the_base_is_warned_about(written, make_base, tmp_path):
    fields = json.loads(written()) | {"init_lora_weights": "pissa"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.warns(AdapterWarning, match=r"'pissa' changes the base weights"):
        quantlora.load_adapter(make_base(), tmp_path)
