"""A setting by path pattern, as plugins read it through the public names."""

from __future__ import annotations

import time

import pytest

import quantlora

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
