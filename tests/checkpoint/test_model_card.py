"""``README.md`` beside an adapter."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import ModelCard

import quantlora
from quantlora.errors import ConfigError
from quantlora.testing.models import tiny_llama

OWN = (
    "---\nlicense: mit\ntags:\n- poems\nlibrary_name: mine\n---\n\n# My adapter\n\nWritten by me.\n"
)


def saved(folder, base="owner/base", r=2):
    model = quantlora.wrap(tiny_llama(), r=r)
    model.name_or_path = base
    quantlora.save_adapter(model, folder)
    return (folder / "README.md").read_text()


def test_a_card_names_the_base_and_how_to_load(tmp_path):
    card = ModelCard(saved(tmp_path))
    assert card.data.base_model == "owner/base"
    assert card.data.library_name == "peft"
    assert card.data.tags == ["lora", "quantlora", "base_model:adapter:owner/base"]
    assert "quantlora.load_adapter(model" in card.text


def test_a_folder_is_no_base_for_others(tmp_path):
    card = ModelCard(saved(tmp_path / "adapter", base=str(tmp_path)))
    assert card.data.base_model is None
    assert str(tmp_path) not in str(card)


def test_somebodys_card_keeps_its_text_and_fields(tmp_path):
    (tmp_path / "README.md").write_text(OWN)
    card = ModelCard(saved(tmp_path))
    assert card.text == ModelCard(OWN).text
    assert (card.data.license, card.data.library_name) == ("mit", "mine")
    assert card.data.tags == ["poems", "lora", "quantlora", "base_model:adapter:owner/base"]


def test_a_card_of_ours_follows_the_adapter_that_is_saved_over_it(tmp_path):
    fresh = saved(tmp_path / "adapter", r=4)
    saved(tmp_path / "adapter", r=2)
    assert saved(tmp_path / "adapter", r=4) == fresh


@pytest.mark.parametrize("first", ["owner/base", "owner/other"])
def test_a_card_of_ours_names_the_base_of_the_adapter_saved_over_it(first, tmp_path):
    fresh = saved(tmp_path / "adapter", base="owner/base")
    (tmp_path / "adapter" / "README.md").unlink()
    saved(tmp_path / "adapter", base=first)
    assert saved(tmp_path / "adapter", base="owner/base") == fresh


def test_a_base_that_is_no_longer_the_adapters_is_not_named(tmp_path):
    saved(tmp_path / "adapter", base="owner/base")
    text = saved(tmp_path / "adapter", base=str(tmp_path))
    assert "owner/base" not in text
    assert ModelCard(text).data.base_model is None


def test_a_base_that_somebody_wrote_into_a_card_of_ours_stays(tmp_path):
    old = saved(tmp_path).replace("base_model: owner/base", "base_model: me/mine")
    (tmp_path / "README.md").write_text(old + "\nFor my own base.\n")
    card = ModelCard(saved(tmp_path, base="owner/other"))
    assert card.data.base_model == "me/mine"
    assert "For my own base." in card.text


def test_what_somebody_added_to_a_card_of_ours_stays(tmp_path):
    old = saved(tmp_path, r=2) + "\nTrained on poems; rank 2 was enough.\n"
    (tmp_path / "README.md").write_text(old)
    assert saved(tmp_path, r=4) == old.replace(": rank 2,", ": rank 4,")


GIVEN = "---\npipeline_tag: text-generation\n---\n\n# Poems\n\nPerplexity {}.\n"


def saved_with_card(folder, perplexity):
    card = ModelCard(GIVEN.format(perplexity))
    quantlora.save_adapter(quantlora.wrap(tiny_llama(), r=2), folder, card=card)
    return (folder / "README.md").read_text()


def test_a_card_that_is_given_is_written_with_what_the_hub_needs(tmp_path):
    card = ModelCard(saved_with_card(tmp_path, 3))
    assert card.text == ModelCard(GIVEN.format(3)).text
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-generation", "peft")
    assert card.data.tags == ["lora", "quantlora"]


def test_a_card_as_it_was_written_gives_way_to_another_kind(tmp_path):
    usual = saved(tmp_path)
    assert "Perplexity 4." in saved_with_card(tmp_path, 4)
    assert "Perplexity 5." in saved_with_card(tmp_path, 5)
    assert saved(tmp_path) == usual
    assert not (tmp_path / "README.new.md").exists()


def test_a_card_that_was_edited_stays_beside_the_one_given(tmp_path):
    edited = saved_with_card(tmp_path, 3) + "What I found: it works.\n"
    (tmp_path / "README.md").write_text(edited)
    for perplexity in (4, 5):
        assert saved_with_card(tmp_path, perplexity) == edited
        assert f"Perplexity {perplexity}." in (tmp_path / "README.new.md").read_text()


@pytest.mark.parametrize("edited", [False, True])
def test_the_card_beside_an_edited_one_goes_when_it_is_not_edited_itself(edited, tmp_path):
    new = tmp_path / "README.new.md"
    (tmp_path / "README.md").write_text(OWN)
    saved_with_card(tmp_path, 4)
    if edited:
        new.write_text(new.read_text() + "Mine.")
    saved(tmp_path)
    assert new.exists() is edited


@pytest.mark.parametrize("text", ["Only text.\n", "", "# Title\n---\nA line above.\n"])
def test_a_card_without_metadata_gets_some(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    new = saved(tmp_path)
    assert new.endswith(text)
    assert ModelCard(new).data.base_model == "owner/base"


@pytest.mark.parametrize("data", [b"---\na: [\n---\ntext", b"\xff\xfe\x00", b"---\n- a\n---\n"])
def test_a_card_that_cannot_be_read_is_left_alone(data, tmp_path):
    (tmp_path / "README.md").write_bytes(data)
    quantlora.save_adapter(quantlora.wrap(tiny_llama(), r=2), tmp_path)
    assert (tmp_path / "README.md").read_bytes() == data


def test_a_second_save_changes_no_letter(tmp_path):
    assert saved(tmp_path) == saved(tmp_path)


@pytest.mark.parametrize("name", ["sql v2", "owner/name", "Umläute", "日本", "a-b_c", "a/b/c"])
def test_names_that_peft_takes_are_saved_and_loaded(name, tmp_path):
    peft = pytest.importorskip("peft")
    ids = torch.tensor([[1, 2, 3]])
    model = quantlora.wrap(tiny_llama(), r=2, adapter_name=name, init_lora_weights=False).eval()
    place = quantlora.save_adapter(model, tmp_path, name)
    assert place == tmp_path / name
    again = quantlora.load_adapter(tiny_llama(), tmp_path, name)
    assert torch.equal(again(ids).logits, model(ids).logits)
    other = peft.PeftModel.from_pretrained(tiny_llama(), place, adapter_name=name).eval()
    assert torch.allclose(other(ids).logits, model(ids).logits, atol=1e-6)


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "..", "a\\..\\out", "a" * 300])
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    with pytest.raises(ConfigError, match="adapter_name"):
        quantlora.wrap(tiny_llama(), r=2, adapter_name=name)
    model = quantlora.wrap(tiny_llama(), r=2)
    with pytest.raises(ConfigError, match="adapter_name"):
        quantlora.rename_adapter(model, "default", name)
    with pytest.raises(ConfigError, match="adapter_name"):
        quantlora.load_adapter(tiny_llama(), tmp_path, name)


@pytest.mark.parametrize("key", ["yes: no", "2024: a"])
def test_a_card_with_a_key_that_is_no_string_is_no_obstacle(key, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{key}\n---\n# X\n")
    assert key in saved(tmp_path)
