"""A model that is packed while it loads is the float one packed afterwards, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
from quantlora.errors import (
    AdapterWarning,
    BackendError,
    ConfigError,
    MissingLibraryError,
    TargetError,
)
from quantlora.testing.models import save_tiny_llama, tiny_llama
from tests.tools.expert_models import MODELS, mixtral
from tests.tools.versions import IS_TRANSFORMERS_5

pytestmark = pytest.mark.skipif(not IS_TRANSFORMERS_5, reason="Transformers 4 packs nothing so")

BACKENDS = ["normalfloat", "bitsandbytes_4bit"]
IDS = torch.arange(8)[None]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def mixtral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    mixtral().save_pretrained(folder)
    return folder


def assert_same_state(found: nn.Module, wanted: nn.Module) -> None:
    left, right = found.state_dict(), wanted.state_dict()
    assert left.keys() == right.keys()
    different = [name for name in right if not torch.equal(left[name], right[name])]
    assert not different


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", MODELS)
def test_a_mixture_is_packed_as_the_float_model_would_be(
    family: str, backend: str, tmp_path: Path
) -> None:
    model = MODELS[family]()
    model.save_pretrained(tmp_path)
    found = quantlora.load(tmp_path, backend=backend)
    assert_same_state(found, quantlora.quantize(model, backend=backend))
    assert not any(p.requires_grad and p.dim() == 3 for p in found.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dense_model_is_packed_and_its_head_is_not(backend: str, llama_folder: str) -> None:
    found = quantlora.load(llama_folder, backend=backend)
    assert_same_state(found, quantlora.quantize(tiny_llama(), backend=backend))
    assert type(found.lm_head) is nn.Linear
    assert not found.training


def test_biases_are_packed_with_their_layers(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(
        Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    )
    nn.init.normal_(model.model.layers[0].self_attn.q_proj.bias)
    model.save_pretrained(tmp_path)
    found = quantlora.load(tmp_path, backend="normalfloat")
    assert_same_state(found, quantlora.quantize(model, backend="normalfloat"))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_bits_and_options_are_those_of_the_format(bits: int, llama_folder: str) -> None:
    options = {"block_size": 16, "bits_pattern": {r"layers\.0\..*": 4}}
    found = quantlora.load(llama_folder, backend="normalfloat", bits=bits, quantize_options=options)
    layers = found.model.layers
    assert [layer.self_attn.q_proj.bits for layer in layers] == [4, *[bits] * (len(layers) - 1)]
    assert layers[0].self_attn.q_proj.block_size == 16


def test_layers_are_chosen_as_in_wrap(mixtral_folder: Path) -> None:
    given: dict[str, Any] = {"target_experts": False, "exclude_modules": ["q_proj"]}
    found = quantlora.load(mixtral_folder, backend="normalfloat", **given)
    layer = found.model.layers[0]
    assert type(layer.self_attn.q_proj) is nn.Linear
    assert type(layer.self_attn.k_proj).__name__ == "NormalFloatLinear"
    assert layer.mlp.experts.gate_up_proj.dim() == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_loaded_packed_trains(backend: str, mixtral_folder: Path) -> None:
    model = quantlora.wrap(quantlora.load(mixtral_folder, backend=backend), r=2)
    experts = model.model.layers[0].mlp.experts
    assert (type(experts).__name__, experts.quantizer.name) == ("LoraExperts", backend)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert experts.lora_B["default"]["down_proj"].weight.grad is not None


def test_auto_loads_what_is_there(llama_folder: str) -> None:
    assert_same_state(quantlora.load(llama_folder), tiny_llama())


def test_the_dtype_is_that_of_from_pretrained(mixtral_folder: Path) -> None:
    found = quantlora.load(mixtral_folder, backend="normalfloat", dtype=torch.bfloat16)
    assert found.lm_head.weight.dtype == torch.bfloat16
    assert found.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.bfloat16
    assert found(IDS).logits.dtype == torch.bfloat16


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = mixtral()
    model.model.layers[1].mlp.experts.down_proj.data[0, 0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=r"layers\.1\.mlp\.experts\.down_proj: the weight holds"):
        quantlora.load(tmp_path, backend="normalfloat")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"bits": 3}, ConfigError, "backend='auto' packs nothing"),
        ({"backend": "normalfloat", "bits": 5}, BackendError, "got bits=5"),
        ({"backend": "normalfloatt"}, BackendError, "Did you mean"),
        ({"backend": "normalfloat", "target_modules": ["nope"]}, TargetError, "nope"),
        (
            {"backend": "normalfloat", "quantize_options": {"bits_pattern": {"nope": 2}}},
            BackendError,
            "bits_pattern 'nope' matches none",
        ),
    ],
)
def test_wrong_input_is_named(given: Any, error: Any, text: str, llama_folder: str) -> None:
    with pytest.raises(error, match=text):
        quantlora.load(llama_folder, **given)


def test_a_quantized_checkpoint_stays_in_its_format(llama_folder: str, tmp_path: Path) -> None:
    quantlora.load(llama_folder, backend="normalfloat").save_pretrained(tmp_path)
    with pytest.raises(BackendError, match=r"quantized already \(normalfloat\)"):
        quantlora.load(tmp_path, backend="bitsandbytes_4bit")
    assert_same_state(
        quantlora.load(tmp_path, backend="normalfloat"),
        quantlora.load(llama_folder, backend="normalfloat"),
    )


def test_calibration_needs_the_float_model() -> None:
    from quantlora.loading.pack_on_arrival import PackOnArrival
    from quantlora.loading.pack_plan import Wanted

    quantizer = quantlora.registry().quantizer("normalfloat")
    with pytest.raises(BackendError, match="which never exists while"):
        PackOnArrival(quantizer, {"calibration": ["text"]}, Wanted())


def test_transformers_4_is_refused_by_name(
    llama_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.57.6")
    with pytest.raises(MissingLibraryError, match=r"transformers>=5\.0, and 4\.57\.6"):
        quantlora.load(llama_folder, backend="normalfloat")


def jetmoe(folder: Path) -> Path:
    from transformers import JetMoeConfig, JetMoeForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = JetMoeConfig(**sizes, kv_channels=8, num_key_value_heads=2, num_local_experts=4)
    JetMoeForCausalLM(config).save_pretrained(folder)
    return folder


def test_what_stays_float_is_named_with_its_share(tmp_path: Path) -> None:
    text = r"\d\d% of the model.s parameters stay float.*linear\.w"
    with pytest.warns(AdapterWarning, match=text):
        quantlora.load(jetmoe(tmp_path), backend="normalfloat")


@pytest.mark.filterwarnings("error::quantlora.AdapterWarning")
@pytest.mark.parametrize("given", [{}, {"target_experts": False}, {"exclude_modules": ["experts"]}])
def test_what_is_left_out_on_purpose_is_not(given: Any, mixtral_folder: Path) -> None:
    quantlora.load(mixtral_folder, backend="normalfloat", **given)
