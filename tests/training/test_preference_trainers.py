"""DPO, KTO, GRPO and RLOO without ``ref_model``: the wrapped model is its own reference."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import quantlora
from quantlora.errors import BackendError
from tests.training.preference import WITH_REFERENCE, WITHOUT, already_trained, first, make
from tests.training.trainers import loaded, wrapped

ROOT = Path(__file__).parents[2]
BACKENDS = ("float", "bitsandbytes_4bit", "bitsandbytes_8bit", "normalfloat")
#: What is exactly 0 while the policy is its reference.
ZERO = ("rewards/chosen", "rewards/rejected", "kl")
FAST = {("dpo", "bitsandbytes_4bit")}
CELLS = [
    pytest.param(trainer, backend, marks=() if (trainer, backend) in FAST else pytest.mark.slow)
    for trainer in WITH_REFERENCE
    for backend in BACKENDS
]


@pytest.mark.parametrize(("trainer", "backend"), CELLS)
def test_at_the_first_step_policy_and_reference_agree(trainer, backend, tmp_path):
    run = make(trainer, wrapped(backend), tmp_path, max_steps=1)
    run.train()
    assert first(run.state.log_history, *ZERO) == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("trainer", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_an_adapter_of_an_earlier_stage_belongs_to_the_reference(trainer, tmp_path):
    run = make(trainer, already_trained(wrapped("float")), tmp_path, max_steps=1)
    run.train()
    assert first(run.state.log_history, *ZERO) == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_reference_shares_the_base_and_stays_as_it_was(tmp_path):
    model = already_trained(wrapped("bitsandbytes_4bit"))
    run = make("dpo", model, tmp_path, gradient_checkpointing=True)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = run.ref_model(input_ids=ids).logits
    run.train()
    assert torch.equal(run.ref_model(input_ids=ids).logits, before)
    assert not torch.allclose(model.eval()(input_ids=ids).logits, before)
    frozen = {id(one) for one in model.parameters() if not one.requires_grad}
    own = [p for p in run.ref_model.parameters() if id(p) not in frozen]
    assert sum(p.numel() for p in own) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_losses_are_those_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    model = already_trained(wrapped("float"))
    quantlora.save_adapter(model, tmp_path / "adapter")
    other = peft.PeftModel.from_pretrained(loaded("float"), tmp_path / "adapter", is_trainable=True)
    runs = [make("dpo", one, tmp_path, seed=1) for one in (model, other)]
    ours, theirs = ([one["loss"] for one in _trained(run)] for run in runs)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert len(set(ours)) == 3


def _trained(run: Any) -> list[dict[str, Any]]:
    run.train()
    return [one for one in run.state.log_history if "loss" in one]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["dpo", "kto"])
def test_precomputed_references_give_the_same_losses(trainer, tmp_path):
    runs = [
        make(trainer, already_trained(wrapped("float")), tmp_path / str(early), seed=1,
             precompute_ref_log_probs=early)
        for early in (False, True)
    ]  # fmt: skip
    ours, theirs = ([one["loss"] for one in _trained(run)] for run in runs)
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("trainer", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_moving_the_reference_is_refused(trainer, tmp_path):
    with pytest.raises(BackendError, match="sync_ref_model"):
        make(trainer, wrapped("float"), tmp_path, sync_ref_model=True)


@pytest.mark.parametrize("trainer", ["dpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_an_adapter_on_the_output_layer_is_trained(trainer, tmp_path):
    """TRL multiplies by the layer's weight itself."""
    model = already_trained(quantlora.wrap(loaded("float"), r=2, target_modules=["lm_head"]))
    before = [one.clone() for one in model.lm_head.lora_B.parameters()]
    run = make(trainer, model, tmp_path)
    run.train()
    assert first(run.state.log_history, *ZERO) == pytest.approx([0, 0, 0], abs=1e-6)
    assert not torch.equal(next(model.lm_head.lora_B.parameters()), before[0])


def test_an_output_layer_trained_in_full_is_trained(tmp_path):
    model = quantlora.wrap(loaded("float"), r=2, modules_to_save=["lm_head"])
    before = model.lm_head.weight.clone()
    run = make("dpo", model, tmp_path)
    run.train()
    assert first(run.state.log_history, *ZERO) == pytest.approx([0, 0, 0], abs=1e-6)
    assert not torch.equal(model.lm_head.weight, before)


@pytest.mark.slow
def test_a_reward_model_trains(tmp_path):
    config = loaded("float").config
    config.num_labels, config.pad_token_id = 1, 0
    model = quantlora.wrap(AutoModelForSequenceClassification.from_config(config), r=2)
    losses = [one["loss"] for one in _trained(make("reward", model, tmp_path))]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trainer", WITHOUT)
def test_trainers_without_a_reference_train(trainer, backend, tmp_path):
    losses = [one["loss"] for one in _trained(make(trainer, wrapped(backend), tmp_path))]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_a_model_without_adapters_gets_what_trl_gives_it(tmp_path):
    run = make("dpo", loaded("float"), tmp_path, max_steps=1)
    assert run.ref_model is not None
    assert not {id(p) for p in run.ref_model.parameters()} & {id(p) for p in run.model.parameters()}


@pytest.mark.slow
def test_all_of_it_holds_with_peft_hidden(run_python, tmp_path):
    plugin = ("-p", "tests.training.without_peft", "-p", "no:cacheprovider")
    every = ("-m", "slow or not slow", "--basetemp", str(tmp_path / "own"), "-k", "not peft")
    run = run_python("-m", "pytest", *plugin, *every, __file__, path=[ROOT], check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    assert " passed" in run.stdout


def test_trl_is_taught_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped("float")
