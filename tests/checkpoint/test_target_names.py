"""The shortest names that pick some paths and no others."""

from __future__ import annotations

from hypothesis import given, strategies as st

from quantlora.checkpoint.target_names import minimal_names

PARTS = st.lists(st.sampled_from(["a", "b", "q_proj", "0", "1"]), min_size=1, max_size=4)
PATHS = st.sets(PARTS.map(".".join), min_size=1, max_size=12)


def picked(names, paths):
    return {p for p in paths if any(p == name or p.endswith(f".{name}") for name in names)}


@given(PATHS, st.data())
def test_names_pick_exactly_the_chosen_paths(paths, data):
    chosen = data.draw(st.sets(st.sampled_from(sorted(paths)), min_size=1))
    names = minimal_names(chosen, paths - chosen)
    reachable = {p for p in paths - chosen if any(p.endswith(f".{one}") for one in chosen)}
    assert picked(names, paths) - reachable == chosen


def test_common_endings_are_enough():
    chosen = [f"layers.{i}.{name}" for i in range(3) for name in ("q_proj", "v_proj")]
    assert minimal_names(chosen, ["layers.0.k_proj", "norm"]) == ["q_proj", "v_proj"]


def test_ending_that_another_module_has_is_made_longer():
    assert minimal_names(["text.q_proj"], ["vision.q_proj"]) == ["text.q_proj"]
