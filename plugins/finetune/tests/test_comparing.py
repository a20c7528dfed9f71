"""--trainer dpo, kto, orpo and grpo: whole runs of TRL's trainers on the wrapped model."""

from __future__ import annotations

import json

import pytest
from quantlora_finetune.training.reward import reward_function

from quantlora.errors import ConfigError, FinetuneError

from .conftest import report_in

pytest.importorskip("trl")
REWARD = "def length(prompts, completions, **_):\n    return [float(len(c)) for c in completions]\n"
MORE = {
    "dpo": ["--beta", "0.5"],
    "kto": [],
    "orpo": [],
    "grpo": ["--generations", "2", "--completion-length", "4", "--beta", "0.1"],
}
#: What is exactly 0 at the first step, where the model is its reference.
ZERO = {
    "dpo": ["rewards/chosen", "rewards/rejected", "rewards/margins"],
    "kto": ["rewards/chosen", "rewards/rejected", "kl"],
    "orpo": [],
    "grpo": ["kl"],
}


@pytest.fixture
def compared(tmp_path):
    """A function that writes the data of a trainer."""

    def write(trainer):
        rows = [
            {"prompt": f"say {'abcd'[i % 4]}", "chosen": " yes, it is", "rejected": " no"}
            for i in range(24)
        ]
        if trainer == "grpo":
            rows = [{"prompt": row["prompt"]} for row in rows]
        (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "mine.py").write_text(REWARD)
        more = ["--reward", f"{tmp_path / 'mine.py'}:length"] if trainer == "grpo" else []
        return ["--data", tmp_path / "c.jsonl", "--trainer", trainer, *MORE[trainer], *more]

    return write


@pytest.mark.slow
@pytest.mark.parametrize("trainer", MORE)
def test_a_run_begins_at_its_reference_and_learns(run, arguments, compared, tmp_path, trainer):
    result = run(*arguments, *compared(trainer), "--steps", "8")
    assert result.exit_code == 0, result.output
    report = report_in(tmp_path / "run")
    steps = report["training"]["steps"]
    for name in ZERO[trainer]:
        assert steps[0]["others"].get(name, 0) == pytest.approx(0, abs=1e-7), name
    assert len(steps) == 8
    assert all(step["learning_rate"] > 0 and step["tokens_per_second"] > 0 for step in steps)
    wanted = {"dpo": {"preferred"}, "orpo": {"preferred"}, "kto": set(), "grpo": {"reward"}}
    assert set(report["compared"]) == wanted[trainer]
    if trainer in ("dpo", "orpo"):
        assert steps[-1]["others"]["rewards/margins"] > steps[0]["others"]["rewards/margins"]
    assert (tmp_path / "run" / "report.html").is_file()
    assert run("eval", tmp_path / "run", "--batch-size", "8").exit_code == 0


@pytest.mark.parametrize("trainer", ["dpo"])
def test_rewards_of_the_first_step_are_exactly_zero(run, arguments, compared, tmp_path, trainer):
    result = run(*arguments, *compared(trainer), "--steps", "2", "--eval-examples", "2")
    assert result.exit_code == 0, result.output
    first, second = report_in(tmp_path / "run")["training"]["steps"]
    assert [first["others"][name] for name in ZERO[trainer]] == [0, 0, 0]
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert second["others"]["rewards/margins"] != 0
    assert "Chosen answers that are the likelier ones, before: " in result.output


@pytest.mark.slow
def test_a_stopped_comparison_can_be_resumed(run, arguments, compared, tmp_path):
    assert run(*arguments, *compared("dpo"), "--steps", "4").exit_code == 0
    result = run("finetune", "--resume", "--steps", "8", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert len(report_in(tmp_path / "run")["training"]["steps"]) == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--trainer", "grpo"], "--trainer grpo needs --reward module:function"),
        (["--reward", "a:b"], "no other trainer takes it"),
        (["--trainer", "dpo", "--packing"], "--trainer dpo has no --packing"),
        (["--trainer", "kto", "--batch-size", "1"], "at least 2"),
        (["--trainer", "grpo", "--reward", "a:b", "--batch-size", "3"], "no multiple of"),
        (["--trainer", "grpo", "--reward", "json:dump"], "--reward"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, given, message):
    result = run("finetune", *given, "--model", "./not-there")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split()) or given[-1] == "json:dump"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("length", "is module:function"),
        ("./none.py:length", "there is no file none.py"),
        ("no_such_module_:length", "cannot be imported: ModuleNotFoundError"),
        ("FILE:lenght", "there is no function lenght in .*; there are length"),
    ],
)
def test_a_reward_that_is_not_there_is_named(tmp_path, given, message):
    (tmp_path / "mine.py").write_text(REWARD)
    with pytest.raises(ConfigError, match=message):
        reward_function(given.replace("FILE", str(tmp_path / "mine.py")))


@pytest.mark.parametrize("body", ["[1.0]", "None", "['a', 'b']", "[float('nan'), 1]"])
def test_a_reward_that_gives_no_numbers_is_refused(tmp_path, body):
    (tmp_path / "mine.py").write_text(f"def r(completions, **_):\n    return {body} or [0]\n")
    with pytest.raises(FinetuneError, match=r"--reward: r gave .*: (it has to|no numbers)"):
        reward_function(f"{tmp_path / 'mine.py'}:r")(completions=["a", "b"], prompts=["", ""])
