"""``docs/env.md`` and the JSON it documents have the same fields."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantlora.env.cuda import Accelerator, Note
from quantlora.env.deep import Step
from quantlora.env.report import SCHEMA

PAGE = (Path(__file__).parents[2] / "docs" / "env.md").read_text()
TABLE = PAGE.split("| field | content |")[1].split("\n\n")[0]
WORDS = set(re.findall(r"`([\w.\[\]]+)`", TABLE))


@pytest.fixture(scope="module")
def report(run_python) -> dict:
    return json.loads(run_python("-m", "quantlora.env", "--json").stdout)


def leaves(value: object, path: str = "") -> Iterator[str]:
    """Dotted paths of a JSON object; lists and the table of packages are leaves."""
    if isinstance(value, dict) and path != "packages":
        for key, one in value.items():
            yield from leaves(one, f"{path}.{key}" if path else key)
    else:
        yield path


def test_every_field_is_documented_and_every_documented_field_exists(report):
    documented = {word for word in WORDS if word.split(".")[0] in report and "[" not in word}
    assert set(leaves(report)) == documented


@pytest.mark.parametrize("kind", ["plugins", "backends"])
def test_the_fields_of_a_list_are_documented(report, kind):
    assert set(report[kind][0]) <= WORDS


@pytest.mark.parametrize("kind", [Accelerator, Note, Step])
def test_the_fields_of_what_is_not_here_are_documented(kind):
    assert {field.name for field in dataclasses.fields(kind)} <= WORDS


def test_the_schemas_id_is_the_documented_one(report):
    assert report["schema"] == SCHEMA
    assert f"`schema` is `{SCHEMA}`" in PAGE


@pytest.mark.parametrize("option", ["--deep", "--backend", "--json", "--markdown"])
def test_every_option_is_documented_and_exists(run_python, option):
    assert option in PAGE
    assert option in run_python("-m", "quantlora.env", "--help", COLUMNS="200").stdout
