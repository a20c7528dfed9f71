"""A damaged ``run.json`` ends in one error that names the file, the field and what to do."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from quantlora_finetune.options.finetune_options import FinetuneOptions
from quantlora_finetune.run.open_run import open_run
from safetensors.torch import save_file

from quantlora.errors import FinetuneError

BEFORE = {"perplexity": 3, "prompt": "a", "continuation": "b"}


def resumed(folder, **changes):
    """The options that a run in ``folder`` is resumed with, from a record with ``changes``."""
    options = FinetuneOptions(output=folder, rank=4)
    record = {"options": options.as_json(), "data": "d", "model": "m", "before": BEFORE, **changes}
    (folder / "run.json").write_text(json.dumps(record))
    return open_run(FinetuneOptions(output=folder, resume=True), ["output", "resume"])[1]


def test_a_sound_record_gives_the_options_it_was_started_with(tmp_path):
    assert resumed(tmp_path).rank == 4


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"options": []}, "options is a list"),
        ({"options": None}, "options is null"),
        ({"options": {"rank": "8"}}, "options.rank is a text ('8'), not a whole number"),
        ({"options": {"rank": None}}, "options.rank is null (None), not a whole number"),
        ({"options": {"rank": True}}, "options.rank is true or false"),
        ({"options": {"rank": 0}}, "--rank must be at least 1, got 0"),
        ({"options": {"alpha": "x"}}, "options.alpha is a text ('x'), not a number or null"),
        ({"options": {"output": 3}}, "options.output is a whole number (3), not a text"),
        ({"options": {"dtype": "up"}}, "not one of auto, float32"),
        ({"options": {"new": 1}}, "options.new is no option of this version"),
        ({"data": 3}, "data is a whole number"),
        ({"model": None}, "model is null"),
        ({"before": [1]}, "before is a list"),
        ({"before": {"perplexity": 1}}, "before.prompt is missing"),
        ({"before": {**BEFORE, "perplexity": "3"}}, "before.perplexity is a text"),
    ],
)
def test_a_damaged_field_is_named_with_what_to_do(changes, fault, tmp_path):
    with pytest.raises(FinetuneError) as found:
        resumed(tmp_path, **changes)
    text = str(found.value)
    assert fault in text
    assert text.startswith(f"{tmp_path / 'run.json'} is damaged: ")
    assert text.endswith("Correct it there, or start anew with another --output.")


@pytest.mark.parametrize("content", ["[]", "null", "3", "[" * 100_000, "{"])
def test_a_record_of_another_form_is_named(content, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(FinetuneError, match=r"run\.json cannot be read: .* Use another --output"):
        open_run(FinetuneOptions(output=tmp_path, resume=True), ["output", "resume"])


def checkpoint(folder, step):
    one = folder / "checkpoints" / f"checkpoint-{step}"
    one.mkdir(parents=True)
    save_file({"w": torch.zeros(99)}, one / "model.safetensors")
    torch.save({"w": torch.zeros(99)}, one / "optimizer.pt")
    (one / "trainer_state.json").write_text('{"epoch": 1}')
    (one / "complete").touch()
    return one


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_file_of_the_last_checkpoint_that_is_cut_off_is_named(name, tmp_path):
    first, last = (checkpoint(tmp_path, step) for step in (15, 20))
    assert resumed(tmp_path).rank == 4
    whole = (last / name).read_bytes()
    (last / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FinetuneError, match=rf"20/{name} is damaged.*goes on after step 15"):
        resumed(tmp_path)
    shutil.rmtree(first)
    with pytest.raises(FinetuneError, match="--resume begins at step 0"):
        resumed(tmp_path)
