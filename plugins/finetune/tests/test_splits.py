"""What is measured on: the data's end, rows that are drawn, or data of their own."""

from __future__ import annotations

import json

import pytest
from quantlora_finetune.data.dataset import load_dataset
from quantlora_finetune.data.examples import TrainingTokenizer
from quantlora_finetune.options.finetune_options import FinetuneOptions

from quantlora.errors import FinetuneError
from quantlora.testing.models import tiny_tokenizer

from .conftest import report_in

#: Capitals that the template writes itself.
TEMPLATE = set("IR")


def loaded(**options):
    tokenizer = TrainingTokenizer(tiny_tokenizer(), FinetuneOptions(**options))
    return load_dataset(FinetuneOptions(**options), tokenizer)


@pytest.fixture
def talks(tmp_path):
    """Thirty conversations of three answers, each with a letter of its own for its number."""
    file = tmp_path / "talks.jsonl"
    lines = [("user", "q"), ("assistant", "a")] * 3
    file.write_text(
        "\n".join(
            json.dumps({"messages": [{"role": r, "content": c + chr(65 + i)} for r, c in lines]})
            for i in range(26)
        )
    )
    return str(file)


def numbers(examples):
    text = tiny_tokenizer().decode([id for example in examples for id in example.input_ids])
    return {letter for letter in text if letter.isupper()} - TEMPLATE


def test_a_share_of_the_rows_is_drawn_by_the_seed_whole_conversations(talks):
    same = [loaded(data=talks, validation=0.2, template="alpaca", seed=seed) for seed in (1, 1, 2)]
    drawn = [numbers(data.held_out) for data in same]
    assert drawn[0] == drawn[1] != drawn[2]
    assert same[0].facts()["measured_examples"] == 3 * 5
    assert not drawn[0] & numbers(same[0].train)
    assert same[0].facts()["held_out"] == "20.0% of the rows, drawn by --seed 1"


def test_windows_of_a_text_are_drawn_too(tmp_path):
    (tmp_path / "t.txt").write_text("abcdefghij" * 40)
    data = loaded(data=str(tmp_path / "t.txt"), length=16, validation=0.25)
    assert (len(data.train), len(data.held_out)) == (20, 6)


@pytest.mark.slow
def test_data_of_their_own_leave_all_others_to_train_on(run, arguments, text, tmp_path):
    (tmp_path / "other.txt").write_text("pack my box with five dozen liquor jugs. " * 6)
    result = run(*arguments, "--eval-data", tmp_path / "other.txt", "--steps", "2")
    assert result.exit_code == 0, result.output
    facts = report_in(tmp_path / "run")["data"]
    whole = loaded(data=str(text), length=32)
    assert facts["train_examples"] == len(whole.train) + 9
    assert facts["held_out"] == str(tmp_path / "other.txt")
    assert run("eval", tmp_path / "run").exit_code == 0


def test_two_answers_to_the_same_question_are_refused(run, arguments):
    result = run("finetune", "--eval-data", "x.txt", "--validation", "0.1")
    assert result.exit_code == 1
    assert "--eval-data and --validation both say what is measured on" in result.stderr


def test_a_part_without_an_example_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    (tmp_path / "b.txt").write_text("ab")
    with pytest.raises(FinetuneError, match="at least 2 are needed"):
        loaded(data=str(tmp_path / "a.txt"), eval_data=str(tmp_path / "b.txt"), length=16)
