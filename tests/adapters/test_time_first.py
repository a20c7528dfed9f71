"""Mixed batches of (time, batch, features), also where the batch is as large as time is long."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import quantlora
from quantlora.errors import AdapterError
from tests.tools.peft_oracle import relative

NAMES = ["a", "b", "__base__", "a"]


class Model(nn.Module):
    """Tokens (time, batch) or (batch, time) through torch's own encoder."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        self.batch_dim = int(not batch_first)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.inner(self.embed(ids))
        return y


def model(batch_first: bool, targets: list[str]) -> Model:
    torch.manual_seed(0)
    one = Model(batch_first)
    for name in ("a", "b"):
        fields = {"r": 2, "init_lora_weights": False, "target_modules": targets}
        quantlora.wrap(one, adapter_name=name, **fields)
    return one.eval()


def alone(one: Model, ids: Tensor, name: str) -> Tensor:
    if name == "__base__":
        with quantlora.adapters_disabled(one):
            return one(ids)
    quantlora.set_adapter(one, name)
    return one(ids)


@pytest.mark.parametrize("time", [4, 5])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_modules_of_torch_say_which_dimension_it_is(batch_first: bool, time: int) -> None:
    one = model(batch_first, ["linear1", "linear2"])
    dim = one.batch_dim
    ids = torch.randint(0, 11, (len(NAMES), time) if batch_first else (time, len(NAMES)))
    wanted = [alone(one, ids, name).select(dim, i) for i, name in enumerate(NAMES)]
    with quantlora.mixed_batch(one, NAMES):
        found = one(ids)
    assert relative(found.detach(), torch.stack(wanted, dim).detach()) <= 1e-6


@pytest.mark.parametrize("targets", [["embed"], ["embed", "linear1"]])
def test_the_user_says_it_for_other_layers(targets: list[str]) -> None:
    one = model(False, targets)
    ids = torch.randint(0, 11, (len(NAMES), len(NAMES)))
    wanted = [alone(one, ids, name)[:, i] for i, name in enumerate(NAMES)]
    with quantlora.mixed_batch(one, NAMES, batch_dim=1):
        found = one(ids)
    assert relative(found.detach(), torch.stack(wanted, 1).detach()) <= 1e-6


def test_a_number_of_names_that_does_not_fit_tells_of_it() -> None:
    one = model(False, ["embed"])
    with (
        quantlora.mixed_batch(one, NAMES),
        pytest.raises(AdapterError, match=r"mixed_batch\(..., batch_dim=1\)"),
    ):
        one(torch.zeros(5, 4, dtype=torch.long))


def _xlnet() -> tuple[nn.Module, list[str]]:
    from transformers import XLNetConfig, XLNetLMHeadModel

    sizes = {"vocab_size": 11, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 16}
    targets = ["word_embedding", "layer_1", "layer_2", "lm_loss"]
    return XLNetLMHeadModel(XLNetConfig(**sizes, dropout=0.0)), targets


def _fsmt() -> tuple[nn.Module, list[str]]:
    from transformers import FSMTConfig, FSMTForConditionalGeneration

    names = ("encoder_layers", "decoder_layers")
    sizes = dict.fromkeys(names, 1) | {"d_model": 8, "src_vocab_size": 11, "tgt_vocab_size": 11}
    sides = ("encoder", "decoder")
    sizes |= {f"{side}_ffn_dim": 16 for side in sides}
    sizes |= {f"{side}_attention_heads": 2 for side in sides}
    targets = ["embed_tokens", "q_proj", "v_proj", "out_proj", "fc1", "fc2", "output_projection"]
    config = FSMTConfig(**sizes, langs=["en", "de"], tie_word_embeddings=False)
    return FSMTForConditionalGeneration(config), targets


def _longformer() -> tuple[nn.Module, list[str]]:
    from transformers import LongformerConfig, LongformerForMaskedLM

    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "max_position_embeddings": 40, "attention_window": [4]}
    targets = ["query", "key", "value", "query_global", "value_global", "dense", "decoder"]
    config = LongformerConfig(**sizes, **more, tie_word_embeddings=False)
    return LongformerForMaskedLM(config), targets


def _led() -> tuple[nn.Module, list[str]]:
    from transformers import LEDConfig, LEDForConditionalGeneration

    sides = ("encoder", "decoder")
    sizes = {"vocab_size": 11, "d_model": 8, "attention_window": [4]}
    sizes |= {f"{side}_{name}": n for side in sides for name, n in (("layers", 1), ("ffn_dim", 16))}
    sizes |= {f"{side}_attention_heads": 2 for side in sides}
    sizes |= {f"max_{side}_position_embeddings": 40 for side in sides}
    config = LEDConfig(**sizes, pad_token_id=1, decoder_start_token_id=2)
    return LEDForConditionalGeneration(config), ["query", "value", "q_proj", "output", "fc1"]


FAMILIES = {"xlnet": _xlnet, "fsmt": _fsmt, "longformer": _longformer, "led": _led}
ALL = ["a", "b", "b", "a"]


def of_family(family: str) -> nn.Module:
    torch.manual_seed(0)
    one, targets = FAMILIES[family]()
    one.config.use_cache = False  # FSMT of Transformers 4 cannot make its own
    for name in ("a", "b"):
        fields = {"r": 2, "init_lora_weights": False, "target_modules": targets}
        quantlora.wrap(one, adapter_name=name, **fields)
    return one.eval()


def inputs(family: str, time: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 11, (len(ALL), time))
    given = {"input_ids": ids}
    if family in ("longformer", "led"):
        given["global_attention_mask"] = (torch.arange(time) == 0).long().expand(len(ALL), time)
    if family in ("fsmt", "led"):
        given["decoder_input_ids"] = ids
    return given


@pytest.mark.parametrize("batch_dim", [None, 1])
@pytest.mark.parametrize("time", [4, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_transpose_are_known(family: str, time: int, batch_dim: int | None) -> None:
    one, given = of_family(family), inputs(family, time)
    wanted = []
    for i, name in enumerate(ALL):
        quantlora.set_adapter(one, name)
        wanted.append(one(**{key: value[i : i + 1] for key, value in given.items()}).logits[0])
    with quantlora.mixed_batch(one, ALL, batch_dim=batch_dim):
        found = one(**given).logits
    assert relative(found.detach(), torch.stack(wanted).detach()) <= 1e-5


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["fsmt", "led"])
def test_families_that_transpose_generate(family: str, beams: int) -> None:
    one, ids = of_family(family), inputs(family, 4)["input_ids"]
    options = {"num_beams": beams, "max_new_tokens": 3, "min_new_tokens": 3}
    wanted = []
    for i, name in enumerate(ALL):
        quantlora.set_adapter(one, name)
        wanted.append(one.generate(input_ids=ids[i : i + 1], **options)[0])
    found = one.generate(input_ids=ids, adapter_names=ALL, **options)
    assert torch.equal(found, torch.stack(wanted))
