"""``import quantlora.peft as peft``: PEFT's usual names, against PEFT's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantlora
import quantlora.peft as ours
from quantlora import AdapterFileError, ConfigError
from quantlora.testing.models import save_tiny_llama, tiny_llama

theirs = pytest.importorskip("peft")
IDS = torch.arange(8)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_every_name_is_one_of_pefts() -> None:
    assert set(ours.__all__) <= set(dir(theirs))


def test_what_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match=r"quantlora\.peft has no 'IA3Config': it has"):
        ours.IA3Config  # noqa: B018


def test_the_defaults_are_pefts() -> None:
    given = {field.name: field for field in dataclasses.fields(theirs.LoraConfig)}
    mine, peft = ours.LoraConfig(), theirs.LoraConfig()
    different = {n for n, v in vars(mine).items() if n in given and v != getattr(peft, n)}
    assert different == {"loftq_config", "qalora_group_size"}  # None for {} and for an unused 16


def test_tasks_and_methods_are_pefts() -> None:
    assert {task.value for task in ours.TaskType} <= {task.value for task in theirs.TaskType}
    config = ours.LoraConfig(task_type=ours.TaskType.CAUSAL_LM)
    assert (config.task_type, config.peft_type) == ("CAUSAL_LM", ours.PeftType.LORA.value)


def test_the_same_lines_give_the_same_adapter(tmp_path: Path) -> None:
    made = []
    for peft in (theirs, ours):
        config = peft.LoraConfig(r=4, lora_alpha=8, task_type=peft.TaskType.CAUSAL_LM)
        model = peft.get_peft_model(tiny_llama(), config)
        assert isinstance(model, peft.PeftModel)
        made.append(model.get_nb_trainable_parameters())
        model.save_pretrained(tmp_path / peft.__name__)
        assert peft.PeftConfig.from_pretrained(tmp_path / peft.__name__).r == 4
    assert made[0] == made[1]
    for folder in ("peft", "quantlora.peft"):
        loaded = [
            p.PeftModel.from_pretrained(tiny_llama(), tmp_path / folder) for p in (theirs, ours)
        ]
        torch.testing.assert_close(logits(loaded[1]), logits(loaded[0]))


def test_the_tensors_by_key_are_pefts() -> None:
    given = {"target_modules": ["q_proj"], "r": 2}
    keys = [
        p.get_peft_model_state_dict(p.get_peft_model(tiny_llama(), p.LoraConfig(**given))).keys()
        for p in (theirs, ours)
    ]
    assert keys[0] == keys[1]


def test_a_half_precision_model_is_prepared_as_by_peft() -> None:
    dtypes = [
        {n: p.dtype for n, p in peft.prepare_model_for_kbit_training(model).named_parameters()}
        for peft, model in ((theirs, tiny_llama().half()), (ours, tiny_llama().half()))
    ]
    assert dtypes[1] == dict.fromkeys(dtypes[0], torch.float32)


def test_any_model_gets_the_methods_and_loses_them() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    ours.get_peft_model(model, ours.LoraConfig(r=2, target_modules=["0"]))
    assert model.get_nb_trainable_parameters()[0] == 16
    assert isinstance(model, ours.PeftModel)
    model.merge_and_unload()
    assert not isinstance(model, ours.PeftModel)
    assert "save_pretrained" not in vars(model)


def test_a_mixture_of_methods_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixed=True"):
        ours.get_peft_model(tiny_llama(), ours.LoraConfig(), mixed=True)


@pytest.fixture(params=[None, "CAUSAL_LM"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder written here, of an adapter with a task type or without one."""
    base = tiny_llama()
    base.name_or_path = str(save_tiny_llama(tmp_path / "base"))
    fields = {"target_modules": ["q_proj"], "init_lora_weights": False}
    model = quantlora.wrap(base, r=2, task_type=request.param, **fields)
    return quantlora.save_adapter(model, tmp_path / "adapter")


def test_auto_classes_load_base_and_adapter(adapter: Path) -> None:
    wanted = theirs.AutoPeftModelForCausalLM.from_pretrained(adapter)
    found = ours.AutoPeftModelForCausalLM.from_pretrained(adapter)
    torch.testing.assert_close(logits(found), logits(wanted))


def test_the_class_in_the_file_does_where_no_task_is_set(adapter: Path) -> None:
    found = theirs.PeftConfig.from_pretrained(adapter)
    if found.task_type is None:
        assert isinstance(ours.AutoPeftModel.from_pretrained(adapter), ours.PeftModel)
        theirs.AutoPeftModel.from_pretrained(adapter)
    else:
        with pytest.raises(AdapterFileError, match="auto_mapping names no class"):
            ours.AutoPeftModel.from_pretrained(adapter)


def test_a_file_without_a_base_says_so(tmp_path: Path) -> None:
    model = quantlora.wrap(tiny_llama(), r=2)
    folder = quantlora.save_adapter(model, tmp_path)
    with pytest.raises(AdapterFileError, match="base_model_name_or_path is not set"):
        ours.AutoPeftModelForCausalLM.from_pretrained(folder)
