"""Options as other programs name them, and options from a file."""

from __future__ import annotations

import json

import pytest
from quantlora_finetune.command.finetune import command
from quantlora_finetune.options.aliases import translated
from quantlora_finetune.options.choices import flags, option_name
from quantlora_finetune.options.config_file import with_config
from quantlora_finetune.options.finetune_options import FinetuneOptions, with_steps
from quantlora_finetune.options.spellings import ELSEWHERE, SAME, SWITCHES

from quantlora.errors import ConfigError

OURS = {option_name(name)[2:] for name in FinetuneOptions().as_json()}


def test_every_alias_stands_for_an_option_and_is_none_itself():
    assert set(SAME.values()) <= OURS
    words = [word for both in SWITCHES.values() for part in both for word in part[:1]]
    assert {word[2:] for word in words} <= OURS
    assert not OURS & ({*SAME, *SWITCHES, *ELSEWHERE})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning-rate 1e-3", "--lr 1e-3"),
        ("--learning_rate=1e-3", "--lr=1e-3"),
        ("--lora_alpha 16 --lora-r 4", "--alpha 16 --rank 4"),
        ("--load-in-4bit --steps 3", "--bits 4 --steps 3"),
        ("--load_in_4bit True --bf16 false", "--bits 4"),
        ("--use-dora=true", "--variant dora"),
        ("--load_in_4bit false", "--bits 16"),
        ("--load_in_8bit true --load_in_4bit false", "--bits 8"),
        ("--completion_only_loss true --packing true", "--packing"),
        ("--completion_only_loss False --packing false", "--train-on-prompt"),
        ("--gradient_checkpointing --bf16 auto", "--gradient-checkpointing"),
        ("--lora_target all --stage sft", "--target-modules all-linear --trainer transformers"),
        ("--rl=dpo --target-modules=all", "--trainer=dpo --target-modules=all-linear"),
        ("--torch_dtype bf16", "--dtype bfloat16"),
        ("--data my_file.txt -o out", "--data my_file.txt -o out"),
    ],
)
def test_what_others_type_is_understood(typed, meant):
    assert translated(typed.split(), flags(FinetuneOptions)) == meant.split()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_not_there_is_answered_by_what_does_it(run, name):
    result = run("finetune", f"--{name}")
    assert result.exit_code == 1
    assert ELSEWHERE[name].split(":")[0] in " ".join(result.stderr.split())


def test_a_run_started_by_other_names_is_the_same_run(run, arguments, tmp_path):
    given = ["--max_steps", "2", "--lora_r", "3", "--gradient-accumulation-steps", "2"]
    assert run(*arguments, *given).exit_code == 0
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    assert (options["steps"], options["rank"], options["accumulate"]) == (2, 3, 2)


def test_a_runs_own_record_repeats_it(run, arguments, tmp_path):
    assert run(*arguments, "--steps", "2", "--use-dora").exit_code == 0
    record = tmp_path / "run" / "run.json"
    again = run("finetune", "--config", record, "--output", tmp_path / "again", "--rank", "2")
    assert again.exit_code == 0, again.output
    first, second = (
        json.loads((tmp_path / name / "run.json").read_text())["options"]
        for name in ("run", "again")
    )
    assert {k for k in first if first[k] != second[k]} == {"output", "rank"}


def test_a_file_of_options_is_read_before_what_is_typed(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "learning_rate: 0.001\nload_in_4bit: true\ntarget_modules: [q, v]\nprompt: null\n"
    )
    words = translated(with_config(["--steps", "3", "--config", str(file)]))
    assert words == ["--lr=0.001", "--bits", "4", "--target-modules=q,v", "--steps", "3"]
    file.write_text("packing: false\nuse_rslora: true\nload_in_4bit: false\n")
    words = translated(with_config(["--config", str(file)]), flags(FinetuneOptions))
    assert words == ["--use-rslora", "--bits", "16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds no options"),
        ("a: {b: 1}", "is dict, not one value"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        with_config(["--config", str(tmp_path / "run.yaml")])


def test_epochs_are_turned_into_steps_the_last_of_them_whole():
    options = FinetuneOptions(epochs=1.5, batch_size=4, accumulate=2)
    assert with_steps(options, examples=33, processes=2).steps == 4  # 49.5 / 16
    assert with_steps(options, 33, 2).epochs is None


def test_epochs_and_steps_together_are_refused(run, arguments):
    result = run(*arguments, "--epochs", "1", "--steps", "2")
    assert result.exit_code == 1
    assert "--epochs and --steps both say" in result.stderr


def test_the_command_tells_of_both(run):
    assert command.__doc__ is not None
    assert "--config FILE" in " ".join(run("finetune", "--help").output.split())
