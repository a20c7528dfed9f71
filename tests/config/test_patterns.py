"""A setting by path pattern, as plugins read it through the public names."""

from __future__ import annotations

import re
import time

import pytest

import quantlora
from quantlora.config.patterns import as_pattern, by_pattern

PATHS = ["model.layers.0.q_proj", "model.layers.10.q_proj", "model.head"]


@pytest.mark.parametrize(
    ("path", "value"),
    [("model.layers.0.q_proj", 1), ("model.layers.10.q_proj", 2), ("model.head", 3)],
)
def test_the_first_pattern_that_matches_the_end_of_a_path_counts(path: str, value: int) -> None:
    patterns = {"0.q_proj": 1, "q_proj": 2, "ead": 4}
    assert quantlora.by_pattern(path, patterns, 3) == value


def test_patterns_that_match_no_path_are_told_in_their_order() -> None:
    patterns = {"lm_head": 1, "head": 2, r"layers\.1": 3, "proj": 4}
    found = quantlora.unmatched_patterns(patterns, PATHS)
    assert found == ["lm_head", r"layers\.1", "proj"]


def test_a_pattern_that_tries_too_many_ways_ends_in_an_error() -> None:
    start = time.monotonic()
    with pytest.raises(quantlora.TargetError, match="takes longer than"):
        quantlora.by_pattern("a" * 60, {"(a|aa)+9": 1}, 0)
    assert time.monotonic() - start < 10


def test_a_pattern_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(quantlora.ConfigError, match="not a valid regular expression"):
        quantlora.unmatched_patterns(["("], PATHS)


@pytest.mark.parametrize(
    "pattern", ["b.c", r"b\.c", "^a.b", r"^a\.b\.c", "^b.c", "c", "", "a-b", "-"]
)
@pytest.mark.parametrize(
    "path", ["a.b.c", "b.c", "xb.c", "bxc", "a.bxc", "c", "a.b", "", "a-b", "."]
)
def test_names_match_as_the_expressions_they_are(pattern: str, path: str) -> None:
    """They are compared without compiling them, for there may be one for each layer."""
    wanted = re.match(rf"(.*\.)?({pattern})$", path) is not None
    assert bool(by_pattern(path, {pattern: True}, False)) == wanted


def test_patterns_for_twenty_thousand_layers_take_no_compiling() -> None:
    begun = time.process_time()
    names = [f"layers.{i}.q" for i in range(20_000)]
    _, patterns = as_pattern(dict(zip(names, range(20_000), strict=True)))
    assert by_pattern("layers.19999.q", patterns, None) == 19_999
    assert by_pattern("layers.7.q", dict.fromkeys(names, 1), None) == 1
    assert time.process_time() - begun < 1.5
