"""Values that no one would type, but a file can hold: refused by name, at no cost."""

from __future__ import annotations

from typing import Any

import pytest
import regex
from torch import nn

import quantlora
from quantlora import LoraConfig
from quantlora.config import expressions
from quantlora.config.picked_paths import TargetNames
from quantlora.errors import ConfigError, TargetError

DEEP = "(" * 5000 + "a" + ")" * 5000

VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "nested parentheses": ({"target_modules": DEEP}, "target_modules"),
    "nested in what is left out": ({"exclude_modules": DEEP}, "exclude_modules"),
    "nested in ranks": ({"rank_pattern": {DEEP: 2}}, "rank_pattern"),
    "nested in alphas": ({"alpha_pattern": {DEEP: 2}}, "alpha_pattern"),
    "nested in modules_to_save": ({"modules_to_save": [DEEP]}, "modules_to_save"),
    "an open one in modules_to_save": ({"modules_to_save": ["head("]}, "modules_to_save"),
    "an open one in layers_pattern": (
        {"target_modules": ["a"], "layers_to_transform": [0], "layers_pattern": ["layers("]},
        "layers_pattern",
    ),
    "a repeat beyond all": ({"target_modules": "a{99999999999999999999}"}, "target_modules"),
    "alpha of 400 digits": ({"lora_alpha": 10**400}, "lora_alpha"),
    "alpha of 5000 digits": ({"lora_alpha": 10**5000}, "lora_alpha"),
    "alpha of 400 digits by pattern": ({"alpha_pattern": {"a": 10**400}}, "alpha_pattern"),
    "rank of 400 digits": ({"r": 10**400}, "r must be"),
    "rank of 5000 digits by pattern": ({"rank_pattern": {"a": 10**5000}}, "rank_pattern"),
    "dropout of 5000 digits": ({"lora_dropout": 10**5000}, "lora_dropout"),
    "a negative group": ({"qalora_group_size": -16}, "qalora_group_size"),
    "a list for a number": ({"r": list(range(100_000))}, "r must be"),
}


@pytest.mark.parametrize("what", VALUES)
def test_the_value_is_refused_by_name_in_a_short_message(what: str) -> None:
    fields, message = VALUES[what]
    with pytest.raises(ConfigError, match=message) as error:
        LoraConfig(**fields)
    assert len(str(error.value)) < 1000


def linears(count: int) -> nn.Module:
    return nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in range(count)})


def test_each_expression_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_ = regex.compile
    monkeypatch.setattr(regex, "compile", lambda text: compiled.append(text) or compile_(text))
    monkeypatch.setattr(regex, "match", None)  # regex's own cache holds 500
    expressions.compiled.cache_clear()
    names = TargetNames(LoraConfig(modules_to_save=[f"head{i}" for i in range(1000)]))
    assert [path for path in ("layer0", "x.head3.y") if names.pick(path)] == ["layer0"]
    for path in ("layer0", "layer1", "layer2"):
        names.pick(path)
    assert len(compiled) == len(set(compiled)) <= 2001


class Counted(str):
    """A name that counts how often it is looked at."""

    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return super().__eq__(other)


def test_names_are_looked_at_once_however_many_paths_there_are() -> None:
    Counted.looks = 0
    given = [Counted(f"name{i}") for i in range(1000)]
    names = TargetNames(LoraConfig(target_modules=given))
    found = [
        path for path in (f"model.layers.{i}.name{i}" for i in range(2000)) if names.pick(path)
    ]
    assert len(found) == 1000
    assert Counted.looks <= 4 * len(given)


def test_a_million_names_that_match_nothing_are_a_short_error() -> None:
    config = LoraConfig(target_modules=[f"name{i}" for i in range(20_000)])
    with pytest.raises(TargetError, match="matches no layer") as error:
        quantlora.wrap(linears(3), config)
    assert len(str(error.value)) < 2000
