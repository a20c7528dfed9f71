"""The options: one dataclass for the command line, for Python and for ``run.json``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from quantlora_finetune.options.choices import Dtype, option_infos, option_name
from quantlora_finetune.options.finetune_options import FinetuneOptions

from quantlora.errors import ConfigError

FIELDS = [field.name for field in dataclasses.fields(FinetuneOptions)]


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_an_option_with_help_in_a_group(name, run):
    info = option_infos(FinetuneOptions)[name]
    assert info.help
    assert info.rich_help_panel
    assert option_name(name) in run("finetune", "--help").output


def test_help_needs_no_torch(run_python):
    program = (
        "import sys; from quantlora.cli import app\n"
        "try: app(['finetune', '--help'])\n"
        "finally: assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)\n"
    )
    assert "--resume" in run_python("-c", program).stdout


def test_options_survive_json():
    options = FinetuneOptions(model="m", rank=4, dtype=Dtype.FLOAT16, output=Path("out"))
    assert FinetuneOptions.from_json(options.as_json()) == options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"held_out": 0.95}, "--held-out must be at most 0.9"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"lr": float("nan")}, "--lr must be above 0"),
        ({"dtype": "float8"}, "--dtype must be one of auto, float32, .*, got 'float8'"),
        ({"rank": "8"}, "--rank must be int, got '8'"),
        ({"steps": True}, "--steps must be int, got True"),
        ({"output": None}, "--output must be Path, got None"),
    ],
)
def test_limits_hold_in_python_too(fields, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneOptions(**fields)


def test_texts_are_taken_for_paths_and_choices():
    options = FinetuneOptions(output="out", dtype="float16", lr=1)
    assert (options.output, options.dtype) == (Path("out"), Dtype.FLOAT16)


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj,", ["q_proj", "v_proj"]),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_target_modules_are_names_or_a_pattern(given, targets):
    assert FinetuneOptions(target_modules=given).targets == targets


def test_alpha_is_twice_the_rank_unless_given():
    assert FinetuneOptions(rank=4).lora_alpha == 8
    assert FinetuneOptions(rank=4, alpha=3).lora_alpha == 3
